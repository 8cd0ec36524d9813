[ -z "$PS1" ] && return
PS1='\u@\h:\w\$ '
shopt -s checkwinsize
alias ls='ls --color=auto' ll='ls -l' ip='ip --color=auto'
