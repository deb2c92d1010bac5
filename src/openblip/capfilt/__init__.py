"""CapFilt: a captioner writes captions, a filter removes noisy ones (BLIP, section 3.3)."""
