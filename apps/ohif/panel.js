// Our part of the panel on the right: drawing, submitting, the next study, the training.

/** The part as a new element; `actions` are called by its buttons: submit, next, train, tool(name), brushSize(mm),
 * segment(index), open(study). */
export function createPanel(actions) {
  const root = document.createElement('section');
  root.id = 'vqseg-panel';
  root.setAttribute('aria-label', 'VQ-Seg');
  root.innerHTML = `
    <div class="vqseg-row">
      <button type="button" data-tool="brush" aria-pressed="false">Brush</button>
      <button type="button" data-tool="eraser" aria-pressed="false">Eraser</button>
      <label>Size <input type="range" name="size" min="1" max="60" value="15" aria-label="Brush radius in mm" /></label>
    </div>
    <div class="vqseg-row" data-part="segments" role="radiogroup" aria-label="Structure to draw"></div>
    <label class="vqseg-row">Your name <input type="text" name="annotator" maxlength="64" autocomplete="name" /></label>
    <button type="button" class="vqseg-main" data-action="submit">Submit Label</button>
    <div class="vqseg-row">
      <button type="button" data-action="next">Next study</button>
      <button type="button" data-action="train">Train</button>
    </div>
    <div class="vqseg-next" hidden></div>
    <progress max="1" value="0" aria-label="Training"></progress>
    <p class="vqseg-training"></p>
    <p class="vqseg-message" role="status"></p>`;
  root.addEventListener('click', ({ target }) => {
    const { action, tool } = target.dataset;
    if (action) {
      actions[action]();
    } else if (tool) {
      press(root, tool);
      actions.tool(tool);
    }
  });
  const find = selector => root.querySelector(selector);
  find('[name=size]').addEventListener('input', ({ target }) => actions.brushSize(Number(target.value)));
  find('[name=annotator]').value = window.localStorage.getItem('vqseg-annotator') ?? '';
  find('[name=annotator]').addEventListener('change', ({ target }) =>
    window.localStorage.setItem('vqseg-annotator', target.value.trim())
  );

  return {
    root,
    annotator: () => find('[name=annotator]').value.trim(),
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
      find('[data-action=train]').textContent = running ? 'Stop training' : 'Train';
    },
    showSegments: segments => showSegments(find('[data-part=segments]'), segments, actions.segment),
    showNext: study => showNext(find('.vqseg-next'), study, actions.open),
  };
}

function press(root, tool) {
  for (const button of root.querySelectorAll('[data-tool]')) {
    button.setAttribute('aria-pressed', String(button.dataset.tool === tool));
  }
}

function showSegments(list, segments, choose) {
  const shown = JSON.stringify(segments);
  if (list.dataset.shown === shown) {
    return;
  }
  list.dataset.shown = shown;
  list.replaceChildren(
    ...segments.map(({ index, name, active, color }) => {
      const button = made('button', name, { type: 'button', role: 'radio', 'aria-checked': String(active) });
      button.style.setProperty('--color', `rgb(${color.slice(0, 3).join(' ')})`);
      button.addEventListener('click', () => choose(index));
      return button;
    })
  );
}

/** The study that is offered: who it is, why it was chosen, and a link that opens it. */
function showNext(card, study, open) {
  card.hidden = !study;
  if (!study) {
    card.replaceChildren();
    return;
  }
  const facts = [study.PatientID, study.Modality, study.StudyDate].filter(Boolean).join(' · ');
  const score = study.score === null || study.score === undefined ? '' : `, score ${study.score.toPrecision(3)}`;
  const button = made('button', 'Open', { type: 'button', class: 'vqseg-main' });
  button.addEventListener('click', () => open(study));
  const lines = [facts, study.reason, `${study.strategy_used}${score}`, study.note].filter(Boolean);
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
