"""From any file to one grey mid-sagittal image."""
