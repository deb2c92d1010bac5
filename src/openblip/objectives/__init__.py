"""The objectives of BLIP (section 3.2): functions of tensors, and the queue's buffers."""
