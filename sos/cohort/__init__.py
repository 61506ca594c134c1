"""Patients with images, boxes, stages and splits, and the views of them that networks are trained on."""
