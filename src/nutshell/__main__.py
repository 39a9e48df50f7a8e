from nutshell.cli.main import main

main()
