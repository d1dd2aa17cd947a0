
'use strict';
const fields = [...document.querySelectorAll('section input')];
const state = document.getElementById('state'), known = document.getElementById('known');
const nameOf = field => field.value.toWellFormed().replace(/[\p{C}\p{Z}]+/gu, ' ').trim();
const saved = () => JSON.stringify(fields.map(nameOf));
let before = saved();

// A YAML string of ASCII alone: what else there is becomes an escape.
function quoted(text) {
  const escaped = [...text].map(char => {
    const code = char.codePointAt(0);
    if (char === '"' || char === '\\') return '\\' + char;
    if (code >= 0x20 && code < 0x7f) return char;
    return code > 0xffff ? '\\U' + code.toString(16).padStart(8, '0') : '\\u' + code.toString(16).padStart(4, '0');
  });
  return '"' + escaped.join('') + '"';
}

function namesFile() {
  const lines = fields.filter(nameOf).map(field => '\n  ' + field.dataset.cluster + ': ' + quoted(nameOf(field)));
  return '# Names of the clusters. Those with the same name are one.\nclustering: "' +
    document.body.dataset.clustering + '"\nnames:' + (lines.join('') || ' {}') + '\n';
}

function show() {
  const byName = new Map();
  for (const field of fields) {
    const name = nameOf(field);
    if (name) byName.set(name, [...(byName.get(name) || []), field.dataset.cluster]);
  }
  for (const field of fields) {
    const others = (byName.get(nameOf(field)) || []).filter(number => number !== field.dataset.cluster);
    field.closest('section').querySelector('.same').textContent = others.length ? 'one with cluster ' + others.join(', ') : '';
  }
  known.replaceChildren(...[...byName.keys()].sort().map(name => Object.assign(document.createElement('option'), {value: name})));
  const named = fields.filter(nameOf).length;
  state.textContent = named + ' of ' + fields.length + ' named' + (saved() === before ? '' : ', not saved');
}

document.addEventListener('input', show);
document.addEventListener('keydown', event => {
  const index = fields.indexOf(event.target);
  if (event.key === 'Enter' && index >= 0) (fields[index + 1] || document.getElementById('save')).focus();
});
document.getElementById('save').addEventListener('click', () => {
  const url = URL.createObjectURL(new Blob([namesFile()], {type: 'text/yaml'}));
  Object.assign(document.createElement('a'), {href: url, download: 'names.yml'}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  before = saved();
  show();
});
window.addEventListener('beforeunload', event => { if (saved() !== before) event.preventDefault(); });
show();
