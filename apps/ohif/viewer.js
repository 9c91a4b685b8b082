// What is read from OHIF 3.10 and done in it, through the objects it puts into the window.

const SEGMENTATION = '1'; // the one that the panel of MONAI Label makes
const TOOL_GROUP = 'mpr';
const SEGMENTATION_PANEL = '@ohif/extension-cornerstone.panelModule.panelSegmentation';
const TOOLS = { brush: 'CircularBrush', eraser: 'CircularEraser' };

const services = () => window.services ?? {};
const segmentation = () => services().segmentationService?.getSegmentation(SEGMENTATION);
const activeViewport = () => services().viewportGridService.getActiveViewportId();

export function notify(message, type = 'info') {
  services().uiNotificationService?.show({ title: 'VQ-Seg', message, type, duration: type === 'error' ? 15000 : 5000 });
}

/** Whether the voxels of the opened series are all here: what is drawn before that is not shown. */
export const imagesAreLoaded = () => (window.cornerstone?.cache.getVolumes() ?? []).some(it => it.loadStatus?.loaded);

/** Series of the active viewport. */
export function shownSeries() {
  const { viewportGridService, displaySetService } = services();
  const [displaySet] = viewportGridService.getState().viewports.get(activeViewport())?.displaySetInstanceUIDs ?? [];
  return displaySet && displaySetService.getDisplaySetByUID(displaySet).SeriesInstanceUID;
}

const labelmap = () => segmentation() && services().segmentationService.getLabelmapVolume(SEGMENTATION);

/** Series that the mask was drawn on, which need not be the one shown; null before there is a mask. */
export function maskSeries() {
  const volume = labelmap();
  if (!volume) {
    return null;
  }
  const { cache, metaData } = window.cornerstone;
  return metaData.get('instance', cache.getImage(volume.imageIds[0]).referencedImageId).SeriesInstanceUID;
}

/** A copy of the mask, one byte a voxel, x fastest; null before there is one. */
export function maskVoxels() {
  const volume = labelmap();
  return volume ? Uint8Array.from(volume.voxelManager.getCompleteScalarDataArray()) : null;
}

/** Whether another segmentation than the panel's is the one that is drawn on. */
export function drawsElsewhere() {
  const active = services().segmentationService.getActiveSegmentation(activeViewport());
  return Boolean(active) && active.segmentationId !== SEGMENTATION;
}

/** Call `listener` when a segmentation changes, by hand or by the model. */
export function onDrawing(listener) {
  const event = window.cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
  window.cornerstone.eventTarget.addEventListener(event, listener);
}

/** Structures of the mask, `[{index, name, active, color}]`. */
export function structures() {
  return Object.values(segmentation()?.segments ?? {}).map(({ segmentIndex, label, active }) => ({
    index: segmentIndex,
    name: label,
    active,
    color: services().segmentationService.getSegmentColor(activeViewport(), SEGMENTATION, segmentIndex) ?? [],
  }));
}

/** Let the mask have all `names`; those it has keep their numbers. */
export function addStructures(names) {
  for (const label of segmentation() ? names : []) {
    const known = structures();
    if (!known.some(({ name }) => name === label)) {
      const segmentIndex = 1 + Math.max(0, ...known.map(({ index }) => index));
      services().segmentationService.addSegment(SEGMENTATION, { label, segmentIndex });
    }
  }
}

/** The panel of MONAI Label paints by the names it began with: give it those the mask has now. */
export function tellPanelStructures() {
  segmentation().config = { ...segmentation().config, segments: segmentation().segments };
}

/** Connecting anew, the panel would make a second mask with numbers of its own: let it go on with the one there is. */
export function keepMaskOnConnecting() {
  const manager = window.commandsManager;
  const { runCommand } = manager;
  manager.runCommand = function (name, options, ...rest) {
    const made = name === 'loadSegmentationsForViewport' && options?.segmentations?.[0]?.segmentationId;
    return made === SEGMENTATION && segmentation() ? undefined : runCommand.call(this, name, options, ...rest);
  };
}

export const chooseStructure = index => services().segmentationService.setActiveSegment(SEGMENTATION, index);

/** Draw with the brush or the eraser, of a radius in mm. */
export function useTool(name, radius) {
  window.commandsManager.runCommand('setToolActiveToolbar', { toolName: TOOLS[name], toolGroupIds: [TOOL_GROUP] });
  setBrushSize(radius);
}

export const setBrushSize = value =>
  window.commandsManager.runCommand('setBrushSize', { value, toolNames: Object.values(TOOLS) });

/** `brush`, `eraser`, or undefined for a tool of the viewer's own. */
export function toolInUse() {
  const used = services().toolGroupService?.getToolGroup(TOOL_GROUP)?.getActivePrimaryMouseButtonTool();
  return Object.keys(TOOLS).find(name => TOOLS[name] === used);
}

/** OHIF's own list of segments, as a second tab on the right. */
export function addSegmentationPanel() {
  const { panelService } = services();
  if (!panelService.getPanels('right').some(({ id }) => id === SEGMENTATION_PANEL)) {
    panelService.addPanel('right', SEGMENTATION_PANEL);
  }
}

export const openedStudy = () => new URLSearchParams(window.location.search).get('StudyInstanceUIDs');

/** Go to a series in this viewer; the page is loaded anew. */
export function openSeries({ StudyInstanceUID, SeriesInstanceUID }) {
  const query = new URLSearchParams({ StudyInstanceUIDs: StudyInstanceUID, SeriesInstanceUIDs: SeriesInstanceUID });
  window.location.href = `/ohif/monai-label?${query}`;
}
