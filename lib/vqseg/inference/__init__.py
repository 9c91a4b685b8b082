"""From a published model and an image to a mask on the image's own grid."""
