// What MONAI Label's OHIF lacks: submitting a label, drawing, the strategy that was chosen, the training's progress.
import { createPanel } from './panel.js';
import { abandonInference, watchInferences } from './requests.js';
import * as server from './server.js';
import * as stockPanel from './stock_panel.js';
import { trainingOf } from './training.js';
import * as viewer from './viewer.js';

const LOOK_EVERY = 500; // ms
const CONNECT_EVERY = 10000;
const ASK_EVERY = { eager: 3000, idle: 15000 };
const STARTING = 60000; // a training takes up to this long until it shows

let running = false;
let eagerUntil = 0;
let asked = -Infinity;
let connected = -Infinity;
let study = null;
let saved = null; // the mask as it was last submitted, or painted by the model

const panel = createPanel({
  tool: viewer.useTool,
  brushSize: viewer.setBrushSize,
  structure: viewer.chooseStructure,
  submit: () => during('submit', submit),
  next: () => during('next', offerNext),
  train: () => during('train', train),
  stop: () => during('stop', stopTraining),
  open: offered => mayLeave() && viewer.openSeries(offered),
});

/** Do something that takes a while; what goes wrong is shown, and the button waits meanwhile. */
async function during(action, work) {
  panel.busy(action, true);
  try {
    await work();
  } catch (error) {
    tell(error.message, 'error');
  } finally {
    panel.busy(action, false);
  }
}

function tell(words, type = 'info') {
  panel.say(words, type);
  viewer.notify(words, type);
}

async function submit() {
  const voxels = viewer.maskVoxels();
  if (!voxels) {
    throw new Error('There is no mask yet: wait until the images are loaded, then press Run or draw one.');
  }
  if (viewer.drawsElsewhere()) {
    throw new Error('Another segmentation is in use. Only "Segmentations" is submitted: choose it in the list of segments.');
  }
  panel.say('Sending the label…');
  const names = viewer.structures().map(({ name, index }) => ({ name, idx: index }));
  await server.submitLabel(viewer.maskSeries(), voxels, names, panel.annotator());
  saved = voxels;
  tell('The label is saved.', 'success');
  asked = -Infinity;
}

/** Whether something is drawn that neither the server has nor the model could make again. */
function isUnsaved() {
  const voxels = viewer.maskVoxels();
  return Boolean(voxels) && voxels.some(Boolean) && !voxels.every((value, at) => value === saved?.[at]);
}

function mayLeave() {
  if (isUnsaved() && !window.confirm('The mask of this study is not submitted and will be lost. Leave it?')) {
    return false;
  }
  saved = viewer.maskVoxels();
  return true;
}

async function offerNext() {
  panel.showNext(null);
  const offered = await server.nextStudy(stockPanel.chosenStrategy(), panel.annotator());
  if (!offered.SeriesInstanceUID) {
    tell('No study is left to label: every one has a label or is being labelled by somebody else.', 'warning');
    return;
  }
  if (offered.SeriesInstanceUID === viewer.shownSeries()) {
    tell(`It is this study that should be labelled next (${offered.reason || offered.strategy_used}).`);
    return;
  }
  panel.showNext(offered);
  panel.say('');
}

async function train() {
  // Asked for again, since what is shown may be a quarter of a minute old.
  const { continueWith } = trainingOf(await server.information());
  await server.train(continueWith ?? {});
  eagerUntil = performance.now() + STARTING;
  tell('The training has started.', 'success');
}

async function stopTraining() {
  await server.stopTraining();
  tell('The training is stopped.', 'success');
  asked = -Infinity;
}

/** The stock panel paints the answer for the series that is shown over the mask, whatever that holds. */
function mayRun() {
  const series = viewer.maskSeries();
  if (!series) {
    tell('The images are still loading: wait a moment, then press Run again.', 'warning');
    stockPanel.connect();
  } else if (series !== viewer.shownSeries()) {
    tell('The mask belongs to another series of this study: open this series by itself to segment it.', 'error');
  } else if (!isUnsaved() || window.confirm('Run replaces the mask you drew, which is not submitted. Replace it?')) {
    viewer.tellPanelStructures();
    return true;
  }
  return false;
}

/** Keep our part in the panel, which the viewer removes and makes anew, and connect once the images are here. */
function look() {
  const stock = stockPanel.element();
  if (!stock) {
    return;
  }
  if (study !== viewer.openedStudy()) {
    study = viewer.openedStudy();
    abandonInference();
    saved = null;
    panel.say('');
    panel.showNext(null);
  }
  if (!panel.root.isConnected) {
    stock.append(panel.root);
    stockPanel.enterAddress();
    viewer.addSegmentationPanel();
    connected = -Infinity;
  }
  const now = performance.now();
  if (!stockPanel.isConnected() && viewer.imagesAreLoaded() && now - connected > CONNECT_EVERY) {
    connected = now;
    stockPanel.connect();
  }
  panel.showStructures(viewer.structures());
  panel.showTool(viewer.toolInUse());
  stockPanel.showTrainingButton(running);
  if (!document.hidden && now - asked > (running || now < eagerUntil ? ASK_EVERY.eager : ASK_EVERY.idle)) {
    asked = Infinity; // one question at a time
    ask().finally(() => {
      asked = now;
    });
  }
}

async function ask() {
  try {
    const information = await server.information();
    const training = trainingOf(information);
    running = training.running;
    panel.showTraining(training);
    stockPanel.show(information, training);
    viewer.addStructures(information.labels);
    if (stockPanel.isConnected() && !stockPanel.offers(Object.keys(information.models))) {
      stockPanel.connect();
    }
  } catch (error) {
    panel.showServerError(error.message);
  }
}

function start() {
  if (!window.commandsManager || !window.cornerstoneTools) {
    window.setTimeout(start, LOOK_EVERY);
    return;
  }
  viewer.keepMaskOnConnecting();
  viewer.onDrawing(() => abandonInference() && tell('Run is given up, since the mask was drawn on meanwhile.', 'warning'));
  window.setInterval(look, LOOK_EVERY);
}

const style = document.createElement('link');
style.rel = 'stylesheet';
style.href = '/ohif/vqseg/panel.css';
document.head.append(style);
watchInferences({
  refused: words => tell(words, 'error'),
  answered: () => {
    saved = viewer.maskVoxels();
  },
});
stockPanel.answer([
  { selector: '.monaiLabelPanel button', text: 'Next Sample', action: () => void during('next', offerNext) },
  { selector: '.monaiLabelPanel button', text: 'Update Model', action: () => void during('train', train) },
  { selector: '.monaiLabelPanel button', text: 'Stop Training', action: () => void during('stop', stopTraining) },
  { selector: '.monaiLabelPanel button', text: 'Run', action: mayRun },
  { selector: '[data-cy="return-to-work-list"]', action: mayLeave },
]);
// Back and forward stay within the page, where `beforeunload` is not asked.
window.navigation?.addEventListener('navigate', event => {
  if (event.navigationType === 'traverse' && event.cancelable && !mayLeave()) {
    event.preventDefault();
  }
});
window.addEventListener('beforeunload', event => isUnsaved() && event.preventDefault());
start();
