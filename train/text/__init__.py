"""Text: wordings of reports, the WordPiece tokenizer, and masked language modelling."""
