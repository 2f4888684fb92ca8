"""The model APIs of Anthropic, Google and OpenAI."""
