"""`rtp-llm COMMAND …`, also as `python -m rtp_llm`."""

from rtp_llm.cli import main

if __name__ == "__main__":
    main()
