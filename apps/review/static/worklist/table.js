/** The worklist as a table: sorted by its headings, opened by a click or Enter, walked by the arrows. Text only, no markup. */

const ARROWS = { ArrowDown: 1, ArrowUp: -1 };

function cell(row, { text, tone, title }) {
  const element = row.appendChild(document.createElement('td'));
  const words = element.appendChild(document.createElement('span'));
  words.textContent = text ?? '';
  if (tone) words.className = `chip ${tone}`;
  if (title) element.title = title;
}

function heading(row, column, sort, choose) {
  const element = row.appendChild(document.createElement('th'));
  element.scope = 'col';
  if (!column.sort) {
    element.textContent = column.title;
    return;
  }
  const button = element.appendChild(document.createElement('button'));
  button.type = 'button';
  button.textContent = column.title;
  const [name, down] = [sort.replace(/^-/, ''), sort.startsWith('-')];
  if (name === column.sort) {
    element.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    button.append(down ? ' ↓' : ' ↑');
  }
  button.addEventListener('click', () => choose(name === column.sort && !down ? `-${column.sort}` : column.sort));
}

function walk(event) {
  const step = ARROWS[event.key];
  if (!step) return;
  const rows = [...event.currentTarget.querySelectorAll('tbody tr')];
  const at = rows.indexOf(event.target.closest('tr'));
  rows[at + step]?.focus();
  event.preventDefault();
}

/** Fill the table; called again with every run of the page. */
export function mount({ parentElement, data, setTriggerValue }) {
  const root = parentElement.querySelector('.worklist');
  const focused = root.querySelector('tr:focus')?.dataset.token;
  const table = document.createElement('table');
  table.addEventListener('keydown', walk);
  const caption = table.appendChild(document.createElement('caption'));
  caption.textContent = data.caption;
  const head = table.appendChild(document.createElement('thead')).appendChild(document.createElement('tr'));
  for (const column of data.columns) heading(head, column, data.sort, (sort) => setTriggerValue('sort', sort));
  const body = table.appendChild(document.createElement('tbody'));
  for (const entry of data.rows) {
    const row = body.appendChild(document.createElement('tr'));
    row.dataset.token = entry.token;
    row.tabIndex = 0;
    row.setAttribute('aria-label', `Open ${entry.cells[0].text}`);
    for (const each of entry.cells) cell(row, each);
    const open = () => setTriggerValue('open', entry.token);
    row.addEventListener('click', open);
    row.addEventListener('keydown', (event) => {
      if (event.key === 'Enter') open();
    });
  }
  root.replaceChildren(table);
  if (focused) root.querySelector(`tr[data-token="${CSS.escape(focused)}"]`)?.focus();
}

export function unmount() {}
