// The sidebar shows where the reader is; sorting and filters of the table of claims. Without JavaScript
// the table is whole and in the papers' order.
(() => {
  const here = document.querySelector('.sidebar-tree .current-page');
  const pane = document.querySelector('.sidebar-scroll');
  if (here && pane) pane.scrollTop = Math.max(0, here.offsetTop - pane.clientHeight / 2);

  const page = document.querySelector('.claims-page');
  if (!page) return;
  const body = page.querySelector('tbody');
  const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase(), data: row.dataset }));
  const heads = [...page.querySelectorAll('th')];
  const selects = [...page.querySelectorAll('select[data-filter]')];
  const find = page.querySelector('[data-find]');
  const sorter = page.querySelector('[data-sorter]');
  const shown = page.querySelector('.shown');
  let order = { column: 1, down: false };

  const key = (row, column) => row.cells[column].dataset.sort;

  function compare(column, numeric) {
    return (a, b) => {
      const [x, y] = [key(a.row, column), key(b.row, column)];
      if (!numeric) return x.localeCompare(y);
      const [u, v] = [parseFloat(x), parseFloat(y)];
      if (Number.isNaN(u) || Number.isNaN(v)) return 0;
      return u - v;
    };
  }

  function sort() {
    const numeric = heads[order.column].dataset.type === 'number';
    const inOrder = [...rows].sort(compare(order.column, numeric));
    if (order.down) inOrder.reverse();
    if (numeric) {
      // what has no number stays at the foot, whichever way round
      const lacks = (r) => Number.isNaN(parseFloat(key(r.row, order.column)));
      inOrder.sort((a, b) => lacks(a) - lacks(b));
    }
    body.append(...inOrder.map((r) => r.row));
    heads.forEach((h, n) => {
      if (n === order.column) h.setAttribute('aria-sort', order.down ? 'descending' : 'ascending');
      else h.removeAttribute('aria-sort');
    });
    sorter.value = String(order.column);
  }

  function filter() {
    const wanted = selects.filter((s) => s.value).map((s) => [s.dataset.filter, s.value]);
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const once = new Set();
    let lines = 0;
    for (const { row, text, data } of rows) {
      const fits = wanted.every(([k, v]) => data[k] === v) && words.every((w) => text.includes(w));
      row.hidden = !fits;
      if (fits) {
        lines += 1;
        once.add(data.once);
      }
    }
    shown.textContent = `${lines} of ${rows.length} lines, ${once.size} comparisons`;
  }

  function remember() {
    const state = new URLSearchParams();
    selects.forEach((s) => s.value && state.set(s.dataset.filter, s.value));
    if (find.value) state.set('words', find.value);
    if (order.column !== 1 || order.down) state.set('sort', `${order.down ? '-' : ''}${order.column}`);
    const hash = state.toString();
    history.replaceState(null, '', hash ? `#${hash}` : location.pathname + location.search);
  }

  function recall() {
    const state = new URLSearchParams(location.hash.slice(1));
    selects.forEach((s) => {
      const value = state.get(s.dataset.filter) || '';
      s.value = [...s.options].some((o) => o.value === value) ? value : '';
    });
    find.value = state.get('words') || '';
    const column = Math.abs(parseInt(state.get('sort') || '1', 10));
    order = { column: column < heads.length ? column : 1, down: (state.get('sort') || '').startsWith('-') };
    sort();
    filter();
  }

  function sortBy(column) {
    order = { column, down: order.column === column && !order.down };
    sort();
    remember();
  }

  heads.forEach((h, n) => {
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = h.textContent;
    h.replaceChildren(button);
    button.addEventListener('click', () => sortBy(n));
  });
  const changed = () => {
    filter();
    remember();
  };
  selects.forEach((s) => s.addEventListener('change', changed));
  find.addEventListener('input', changed);
  sorter.addEventListener('change', () => {
    order = { column: Number(sorter.value), down: false };
    sort();
    remember();
  });
  page.querySelector('form').addEventListener('submit', (e) => e.preventDefault());
  page.querySelector('[data-reset]').addEventListener('click', () => {
    history.replaceState(null, '', location.pathname + location.search);
    recall();
  });
  window.addEventListener('hashchange', recall);
  page.classList.add('ready');
  recall();
})();
