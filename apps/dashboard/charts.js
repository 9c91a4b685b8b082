// Charts in the colours of the page, light or dark, each with its numbers as a table for whoever cannot see it.
import { make } from './page.js';

// After Okabe and Ito, whose colours those who see few colours can tell apart; lighter on a dark page.
const ON_LIGHT = ['#0072b2', '#d55e00', '#00805d', '#a85585', '#8f6400', '#4a4a4a'];
const ON_DARK = ['#56b4e9', '#f28e4b', '#2bc59a', '#e5a1c8', '#f0c04a', '#c9c9c9'];
const dark = window.matchMedia('(prefers-color-scheme: dark)');
const drawn = new Map();

/**
 * Draw `traces` of plotly into a chart. `says` is what it shows, in words; `table` `{head: [...], rows: [[...]]}` the
 * numbers in it. Without traces the chart is empty, and `says` stands there. Whoever has zoomed into it stays there while it
 * is `about` the same.
 */
export function draw(place, { traces, says, x, y, table, log = false, bars = false, about = true }) {
  drawn.set(place, { traces, says, x, y, table, log, bars, about });
  if (!traces.length) {
    window.Plotly.purge(place);
    place.replaceChildren(make('p', {}, says));
    return;
  }
  if (!place.querySelector('.plot')) {
    const plot = make('div', { class: 'plot', role: 'img' });
    const numbers = make('details', {}, make('summary', {}, 'Numbers'), make('div', { class: 'scroll', tabindex: '0', role: 'region' }, make('table')));
    place.replaceChildren(plot, numbers);
  }
  const [plot, numbers] = place.children;
  plot.setAttribute('aria-label', says);
  numbers.querySelector('.scroll').setAttribute('aria-label', `Numbers: ${says}`);
  const style = getComputedStyle(document.documentElement);
  const colour = name => style.getPropertyValue(name).trim();
  const axis = { gridcolor: colour('--line'), linecolor: colour('--line'), zerolinecolor: colour('--line') };
  const layout = {
    height: 220,
    margin: { l: 52, r: 10, t: 10, b: 42 },
    paper_bgcolor: 'transparent',
    plot_bgcolor: 'transparent',
    font: { color: colour('--text'), family: 'system-ui, sans-serif', size: 12 },
    colorway: dark.matches ? ON_DARK : ON_LIGHT,
    showlegend: traces.length > 1,
    // It grows upwards, away from what is drawn.
    legend: { orientation: 'h', y: 1.02, yanchor: 'bottom' },
    xaxis: { ...axis, title: { text: x }, ...(bars ? { type: 'category' } : {}) },
    yaxis: { ...axis, title: { text: y }, type: log ? 'log' : 'linear', ...(bars ? { rangemode: 'tozero' } : {}) },
    barmode: 'stack',
    uirevision: about,
  };
  window.Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true });
  showTable(numbers.querySelector('table'), table);
}

function showTable(place, { head, rows }) {
  place.replaceChildren(
    make('thead', {}, make('tr', {}, ...head.map(text => make('th', { scope: 'col' }, text)))),
    make('tbody', {}, ...rows.map(row => make('tr', {}, ...row.map(text => make('td', {}, String(text ?? '')))))),
  );
}

dark.addEventListener('change', () => {
  drawn.forEach((chart, place) => draw(place, chart));
});
