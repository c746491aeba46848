"""The laboratory: experiments that compare ways to learn, their results, and what the results say."""
