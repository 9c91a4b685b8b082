// Runs behind the viewer's own settings (app-config.js), before the viewer itself.
(() => {
  // The panel of MONAI Label would ask port 8000 of this host, wherever the page came from.
  const server = encodeURIComponent(`${window.location.origin}/`);
  document.cookie = `MONAILABEL_SERVER_URL=${server}; path=/ohif/; SameSite=Lax`;

  // Images are sent to the PACS itself: the server passes on nothing that writes.
  for (const source of window.config.dataSources) {
    source.configuration.dicomUploadEnabled = false;
  }

  import('/ohif/vqseg/main.js');
})();
