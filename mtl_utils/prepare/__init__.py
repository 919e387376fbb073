"""Finding, checking, fetching, rendering and folding the data, and preparing Google Colab."""
