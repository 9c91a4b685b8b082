// What MONAI Label's OHIF lacks: submitting a label, drawing, the strategy that was chosen, the training's progress.
import { createPanel } from './panel.js';
import { showRefusals } from './refusals.js';
import * as server from './server.js';
import * as stockPanel from './stock_panel.js';
import { trainingOf } from './training.js';
import * as viewer from './viewer.js';

const LOOK_EVERY = 500; // ms
const CONNECT_EVERY = 10000;
const ASK_EVERY = { running: 3000, idle: 15000 };

let information = null;
let training = { running: false };
let asked = -Infinity;
let connected = -Infinity;
let unsent = false;

const panel = createPanel({
  tool: name => viewer.useTool(viewer.TOOLS[name]),
  brushSize: viewer.setBrushSize,
  segment: viewer.chooseSegment,
  submit: () => during('submit', submit),
  next: () => during('next', offerNext),
  train: () => during('train', trainOrStop),
  open,
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
  const mask = viewer.drawnMask();
  if (!mask) {
    throw new Error('There is no mask yet: wait until the images are loaded, then press Run or draw one.');
  }
  panel.say('Sending the label…');
  await server.submitLabel(mask.series, mask.voxels, mask.names, panel.annotator());
  unsent = false;
  tell('The label is saved.', 'success');
  asked = -Infinity;
}

async function offerNext() {
  panel.showNext(null);
  const study = await server.nextStudy(stockPanel.chosenStrategy(), panel.annotator());
  if (!study.SeriesInstanceUID) {
    tell('No study is left to label: every one has a label or is being labelled by somebody else.', 'warning');
    return;
  }
  panel.showNext(study);
  panel.say('');
}

function open(study) {
  if (!unsent || window.confirm('The mask of this study is not submitted and will be lost. Open the next study?')) {
    unsent = false;
    window.location.href = viewer.addressOf(study);
  }
}

async function trainOrStop() {
  await (training.running ? server.stopTraining() : server.train());
  tell(training.running ? 'The training is stopped.' : 'The training has started.', 'success');
  asked = -Infinity;
}

/** The stock panel paints the answer for the series that is shown into the mask, whatever series that was drawn on. */
function mayRun() {
  const mask = viewer.drawnMask();
  if (!viewer.imagesAreLoaded() || !mask) {
    tell('The images are still loading: wait a moment, then press Run again.', 'warning');
  } else if (mask.series !== viewer.shownSeries()) {
    tell('The mask belongs to another series of this study: open this series by itself to segment it.', 'error');
  } else {
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
  if (!panel.root.isConnected) {
    stock.append(panel.root);
    viewer.addSegmentationPanel();
    viewer.onDrawing(() => {
      unsent = true;
    });
  }
  const now = performance.now();
  if (!stockPanel.isConnected() && viewer.imagesAreLoaded() && now - connected > CONNECT_EVERY) {
    connected = now;
    stockPanel.connect();
  }
  panel.showSegments(viewer.segments());
  if (!document.hidden && now - asked > (training.running ? ASK_EVERY.running : ASK_EVERY.idle)) {
    asked = now;
    ask();
  }
}

async function ask() {
  try {
    information = await server.information();
  } catch (error) {
    panel.say(error.message, 'error');
    return;
  }
  training = trainingOf(information);
  panel.showTraining(training);
  stockPanel.show(information, training);
  if (stockPanel.isConnected() && !stockPanel.offers(Object.keys(information.models))) {
    stockPanel.connect();
  }
}

const style = document.createElement('link');
style.rel = 'stylesheet';
style.href = '/ohif/vqseg/panel.css';
document.head.append(style);
showRefusals();
stockPanel.answer({
  'Next Sample': () => void during('next', offerNext),
  'Update Model': () => void during('train', trainOrStop),
  'Stop Training': () => void during('train', trainOrStop),
  Run: mayRun,
});
window.addEventListener('beforeunload', event => unsent && event.preventDefault());
window.setInterval(look, LOOK_EVERY);
