// Our part of the panel on the right: drawing, submitting, the next study, the training.

const ANNOTATOR = 'vqseg-annotator';

/** The part as a new element; its buttons call `actions`: submit(), next(), train(), stop(), open(study),
 * tool(name, radius), brushSize(radius), structure(index). */
export function createPanel(actions) {
  const root = document.createElement('section');
  root.id = 'vqseg-panel';
  root.setAttribute('aria-label', 'VQ-Seg');
  root.innerHTML = `
    <div class="vqseg-row">
      <button type="button" data-tool="brush">Brush</button>
      <button type="button" data-tool="eraser">Eraser</button>
      <label>Size <input type="range" name="size" min="1" max="60" value="15" aria-label="Size, radius in mm" /></label>
    </div>
    <div class="vqseg-row" data-part="structures" role="radiogroup" aria-label="Structure to draw"></div>
    <label class="vqseg-row">Your name <input type="text" name="annotator" maxlength="64" autocomplete="name" /></label>
    <button type="button" class="vqseg-main" data-action="submit">Submit Label</button>
    <div class="vqseg-row">
      <button type="button" data-action="next">Next study</button>
      <button type="button" data-action="train">Train</button>
      <button type="button" data-action="stop" hidden>Stop training</button>
    </div>
    <div class="vqseg-next" hidden></div>
    <progress max="1" value="0" aria-label="Training"></progress>
    <p class="vqseg-training"></p>
    <p class="vqseg-message" role="status"></p>`;
  const find = selector => root.querySelector(selector);
  const size = find('[name=size]');
  const annotator = find('[name=annotator]');
  root.addEventListener('click', ({ target }) => {
    const { action, tool } = target.dataset;
    if (action) {
      actions[action]();
    } else if (tool) {
      actions.tool(tool, Number(size.value));
    }
  });
  size.addEventListener('input', () => actions.brushSize(Number(size.value)));
  annotator.value = window.localStorage.getItem(ANNOTATOR) ?? '';
  annotator.addEventListener('change', () => window.localStorage.setItem(ANNOTATOR, annotator.value.trim()));

  return {
    root,
    annotator: () => annotator.value.trim(),
    say: (words, type = 'info') => {
      find('.vqseg-message').textContent = words;
      find('.vqseg-message').dataset.type = type;
    },
    busy: (action, is) => {
      find(`[data-action=${action}]`).disabled = is;
    },
    showTraining: ({ running, share, words }) => {
      find('progress').value = share;
      find('.vqseg-training').textContent = words;
      find('[data-action=train]').hidden = running;
      find('[data-action=stop]').hidden = !running;
    },
    showServerError: words => {
      find('.vqseg-training').textContent = words;
    },
    showTool: used => {
      for (const button of root.querySelectorAll('[data-tool]')) {
        button.setAttribute('aria-pressed', String(button.dataset.tool === used));
      }
    },
    showStructures: structures => showStructures(find('[data-part=structures]'), structures, actions.structure),
    showNext: study => showNext(find('.vqseg-next'), study, actions.open),
  };
}

function showStructures(list, structures, choose) {
  const shown = JSON.stringify(structures.map(({ index, name, color }) => [index, name, color]));
  if (list.dataset.shown !== shown) {
    list.dataset.shown = shown;
    list.replaceChildren(...structures.map(structure => structureChoice(structure, choose)));
  }
  structures.forEach(({ active }, at) => {
    list.children[at].firstChild.checked = active;
  });
}

function structureChoice({ index, name, color }, choose) {
  const label = made('label', '', { class: 'vqseg-structure' });
  label.style.setProperty('--color', `rgb(${color.slice(0, 3).join(' ')})`);
  const radio = made('input', '', { type: 'radio', name: 'structure' });
  radio.addEventListener('change', () => choose(index));
  label.append(radio, name);
  return label;
}

/** The study that is offered: who it is, why it was chosen, by what and of how many, and a button that opens it. */
function showNext(card, study, open) {
  card.hidden = !study;
  if (!study) {
    card.replaceChildren();
    return;
  }
  const facts = [study.PatientID, study.Modality, study.StudyDate].filter(Boolean).join(' · ');
  const place = [study.strategy_used];
  if (study.rank) {
    place.push(`rank ${study.rank}`);
  }
  if (typeof study.score === 'number') {
    place.push(`score ${study.score.toPrecision(3)}`);
  }
  const parts = Object.entries(study.parts ?? {}).map(([name, value]) => `${name} ${value.toPrecision(3)}`);
  const weightiest = parts.length ? `Weighs most: ${parts.join(', ')}` : '';
  const all = study.unlabelled ?? study.labelled;
  const scored = study.scored ? `${study.scored} of ${all} studies scored by model ${study.model_version}` : '';
  const button = made('button', 'Open', { type: 'button', class: 'vqseg-main' });
  button.addEventListener('click', () => open(study));
  const lines = [facts, study.reason, place.join(', '), weightiest, scored, study.note].filter(Boolean);
  card.replaceChildren(...lines.map(line => made('p', line)), button);
}

function made(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  return element;
}
