"""Finding, checking, fetching and rendering the data, and preparing Google Colab."""
