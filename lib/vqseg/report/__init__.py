"""What a training did, as one HTML file for people: `write_report` in `page`."""
