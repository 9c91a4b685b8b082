// Who labelled how much, and when.
import { call } from '/ohif/vqseg/server.js';
import { draw } from './charts.js';
import { element, make, nameOf } from './page.js';

/** Ask for the labels again. */
export async function readLabels() {
  const { total, by_day: days, latest } = await call('GET', '/vqseg/labels');
  const dates = [...new Set(days.map(({ day }) => day))];
  const people = [...new Set(days.map(({ user }) => user))];
  const count = (day, user) => days.find(one => one.day === day && one.user === user)?.labels ?? 0;
  draw(element('labels-chart'), {
    traces: people.map(user => ({ x: dates, y: dates.map(day => count(day, user)), type: 'bar', name: annotatorOf(user) })),
    says: total ? `${total} labels on ${dates.length} days, by ${people.map(annotatorOf).join(', ')}` : 'No label was submitted yet.',
    x: 'day',
    y: 'labels',
    bars: true,
    table: { head: ['Day', ...people.map(annotatorOf)], rows: dates.map(day => [day, ...people.map(user => count(day, user))]) },
  });
  element('labels').tBodies[0].replaceChildren(
    ...latest.map(({ time, image, tag, user, model_version: version }) =>
      make(
        'tr',
        {},
        make('td', {}, time.slice(0, 16).replace('T', ' ')),
        make('td', {}, nameOf(image), tag === 'final' ? '' : ` (${tag})`),
        make('td', { class: 'annotator' }, annotatorOf(user)),
        make('td', {}, version ?? ''),
      ),
    ),
  );
}

const annotatorOf = user => user || 'nobody named';
