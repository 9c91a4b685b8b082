// What is read from OHIF 3.10 and done in it, through the objects it puts into the window.

const SEGMENTATION = '1'; // the one that the panel of MONAI Label makes
const TOOL_GROUP = 'mpr';
const SEGMENTATION_PANEL = '@ohif/extension-cornerstone.panelModule.panelSegmentation';
export const TOOLS = { brush: 'CircularBrush', eraser: 'CircularEraser' };

const services = () => window.services ?? {};

export function notify(message, type = 'info') {
  services().uiNotificationService?.show({ title: 'VQ-Seg', message, type, duration: type === 'error' ? 15000 : 5000 });
}

/** Whether the voxels of the opened series are all here: what is drawn before that is not shown. */
export const imagesAreLoaded = () => (window.cornerstone?.cache.getVolumes() ?? []).some(it => it.loadStatus?.loaded);

/** Series of the active viewport. */
export function shownSeries() {
  const { viewportGridService, displaySetService } = services();
  const { viewports, activeViewportId } = viewportGridService.getState();
  const [displaySet] = viewports.get(activeViewportId)?.displaySetInstanceUIDs ?? [];
  return displaySet && displaySetService.getDisplaySetByUID(displaySet).SeriesInstanceUID;
}

/** The mask as `{series, voxels, names}`: the series it was drawn on, not the one shown; null before there is one. */
export function drawnMask() {
  const volume = services().segmentationService?.getLabelmapVolume(SEGMENTATION);
  if (!volume) {
    return null;
  }
  const { cache, metaData } = window.cornerstone;
  const image = cache.getImage(volume.imageIds[0]).referencedImageId;
  return {
    series: metaData.get('instance', image).SeriesInstanceUID,
    voxels: Uint8Array.from(volume.voxelManager.getCompleteScalarDataArray()),
    names: segments().map(({ name, index }) => ({ name, idx: index })),
  };
}

/** Structures of the mask, `[{index, name, active, color}]`. */
export function segments() {
  const { segmentationService, viewportGridService } = services();
  const segmentation = segmentationService?.getSegmentation(SEGMENTATION);
  const viewport = viewportGridService?.getActiveViewportId();
  return Object.values(segmentation?.segments ?? {}).map(({ segmentIndex, label, active }) => ({
    index: segmentIndex,
    name: label,
    active,
    color: segmentationService.getSegmentColor(viewport, SEGMENTATION, segmentIndex) ?? [128, 128, 128],
  }));
}

let changed = () => {};

/** Call `listener` when the mask changes, by hand or by the model; takes the place of the former listener. */
export function onDrawing(listener) {
  const event = window.cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED;
  window.cornerstone.eventTarget.removeEventListener(event, changed);
  changed = listener;
  window.cornerstone.eventTarget.addEventListener(event, changed);
}

export const chooseSegment = index => services().segmentationService.setActiveSegment(SEGMENTATION, index);

export const useTool = toolName =>
  window.commandsManager.runCommand('setToolActiveToolbar', { toolName, toolGroupIds: [TOOL_GROUP] });

/** Radius in mm. */
export const setBrushSize = value =>
  window.commandsManager.runCommand('setBrushSize', { value, toolNames: Object.values(TOOLS) });

/** OHIF's own list of segments, as a second tab on the right. */
export function addSegmentationPanel() {
  const { panelService } = services();
  if (!panelService.getPanels('right').some(({ id }) => id === SEGMENTATION_PANEL)) {
    panelService.addPanel('right', SEGMENTATION_PANEL);
  }
}

/** Address of a series in this viewer. */
export function addressOf({ StudyInstanceUID, SeriesInstanceUID }) {
  const query = new URLSearchParams({ StudyInstanceUIDs: StudyInstanceUID, SeriesInstanceUIDs: SeriesInstanceUID });
  return `/ohif/monai-label?${query}`;
}
