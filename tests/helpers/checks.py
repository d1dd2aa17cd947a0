"""What tests assert in one line."""
import pytest
import torch

from utils.errors import UserError


def assert_same(a, b, path=''):
    """Nested dicts and lists of tensors and values are equal bit for bit."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f'{path}/{key}')
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f'{path}/{i}')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


def refusal(call, *arguments, **options):
    """The message of the `UserError` that the call raises, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message == caught.value.line() and 'object at 0x' not in message
    return message
