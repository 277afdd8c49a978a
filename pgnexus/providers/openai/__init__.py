"""OpenAI's wire: chat completions and responses, whole and streamed."""
