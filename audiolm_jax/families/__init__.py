"""Published models, one file per family; fine-tuning."""
