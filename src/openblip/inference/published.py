"""Published checkpoints, by what they are for: used where no model is named."""

PUBLISHED = {
    "caption": "Salesforce/blip-image-captioning-base",
    "match": "Salesforce/blip-itm-base-coco",
    "ask": "Salesforce/blip-vqa-base",
}
"""Repositories of the Hugging Face hub with the base-size models of the paper's authors."""
