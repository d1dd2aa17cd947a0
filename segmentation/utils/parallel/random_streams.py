"""The state of PyTorch's random generators, one for each process of a run, whether that runs or is simulated."""
from collections.abc import Sequence

import numpy as np
import torch


class RandomStreams:
    """The random numbers of `count` processes that this one computes, of which the first is number `first` of the run.

    Process 0 takes the generators as they are, every other starts from (seed, its number), so that what it draws depends on
    neither the real number of processes nor the others.
    """

    def __init__(self, seed: int, first: int, count: int, device: torch.device):
        self.device, self.current = device, 0
        self.states = []
        for number in range(first, first + count):
            with torch.random.fork_rng([device] if device.type == 'cuda' else []):
                if number:
                    torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1))
                self.states.append(self._state())
        self._set(self.states[0])

    def use(self, index: int) -> None:
        """From now on, draw the numbers of the `index`th of these processes."""
        if index != self.current:
            self.states[self.current] = self._state()
            self._set(self.states[index])
            self.current = index

    def get(self) -> list[dict[str, torch.Tensor]]:
        """The states of all, a list of dicts of tensors."""
        self.states[self.current] = self._state()
        return list(self.states)

    def set(self, states: Sequence[dict[str, torch.Tensor]]) -> None:
        """Go on from what `get` had returned. Where the device has changed since, its generator stays as it is."""
        self.states, self.current = list(states), 0
        self._set(states[0])

    def _state(self):
        state = {'cpu': torch.get_rng_state()}
        if self.device.type == 'cuda':
            state['cuda'] = torch.cuda.get_rng_state(self.device)
        return state

    def _set(self, state: dict[str, torch.Tensor]):
        torch.set_rng_state(state['cpu'])
        if 'cuda' in state and self.device.type == 'cuda':
            torch.cuda.set_rng_state(state['cuda'], self.device)
