// Runs behind the viewer's own settings (app-config.js), before the viewer itself.

// Images are sent to the PACS itself: the server passes on nothing that writes.
for (const source of window.config.dataSources) {
  source.configuration.dicomUploadEnabled = false;
}

import('/ohif/vqseg/main.js');
