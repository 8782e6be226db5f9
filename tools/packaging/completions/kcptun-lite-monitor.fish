complete -c kcptun-lite-monitor -F
complete -c kcptun-lite-monitor -s h -l help -d 'show this help message and exit'
complete -c kcptun-lite-monitor -l web -x -d 'show the screen in browsers; other addresses than those of loopback want the token that is printed'
complete -c kcptun-lite-monitor -l metrics -x -d 'serve numbers to Prometheus at /metrics'
complete -c kcptun-lite-monitor -s v -l version -d 'show program\'s version number and exit'
