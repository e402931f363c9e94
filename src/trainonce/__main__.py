from trainonce.cli import main

main()
