"""The objectives of BLIP (section 3.2): losses, queue, teacher, and the tasks that use them."""
