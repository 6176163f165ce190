"""The 12 COCO numbers of any function from images to detections."""
