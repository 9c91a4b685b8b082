// Who labelled how much, and when.
import { call } from '/ohif/vqseg/server.js';
import { draw } from './charts.js';
import { element, make } from './page.js';

/** Ask for the labels again. */
export async function readLabels() {
  const { total, by_day: days, latest } = await call('GET', '/vqseg/labels');
  const dates = [...new Set(days.map(({ day }) => day))];
  const people = [...new Set(days.map(({ user }) => user))];
  const count = (day, user) => days.find(one => one.day === day && one.user === user)?.labels ?? 0;
  draw(element('labels-chart'), {
    traces: people.map(user => ({ x: dates, y: dates.map(day => count(day, user)), type: 'bar', name: nameOf(user) })),
    says: total ? `${total} labels on ${dates.length} days, by ${people.map(nameOf).join(', ')}` : 'No label was submitted yet.',
    x: 'day',
    y: 'labels',
    bars: true,
    table: { head: ['Day', ...people.map(nameOf)], rows: dates.map(day => [day, ...people.map(user => count(day, user))]) },
  });
  element('labels').tBodies[0].replaceChildren(
    ...latest.map(({ time, image, tag, user, model_version: version }) =>
      make(
        'tr',
        {},
        make('td', {}, time.slice(0, 16).replace('T', ' ')),
        make('td', {}, tag === 'final' ? image : `${image} (${tag})`),
        make('td', {}, nameOf(user)),
        make('td', {}, version ?? ''),
      ),
    ),
  );
}

const nameOf = user => user || 'nobody named';
