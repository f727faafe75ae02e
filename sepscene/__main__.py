"""`python -m sepscene` runs the command line without the installed script."""

from sepscene.orchestration.cli.main import main

if __name__ == "__main__":
    main()
