"""Where the time goes: stage by stage, cold and warm, with parts that sum to the total measured on its own."""
