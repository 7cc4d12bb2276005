/** Where the shell keeps its state between calls. */
export const STATE_VARIABLE = 'HOLDFAST_SHELL_STATE';

/** Variables that a shell sets by itself, and the runner's own: never carried into the next call. */
const NOT_KEPT =
  'BASH*|COMP_*|DIRSTACK|EPOCH*|EUID|FUNCNAME|GROUPS|HISTCMD|HOLDFAST_*|IFS|LINENO|OLDPWD|OPTIND|PIPESTATUS|PPID|PWD|RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|UID|_|__hf_*';

/**
 * A shell for one command, read from file descriptor 3. It takes up directory, variables and functions where the last
 * one left them: what differs from the environment that it was started with is written to the state file when it ends.
 * Options, traps and jobs are not kept. It is one line, so that messages count the command's lines; what it starts is
 * killed before the runner when memory runs out.
 */
export const SHELL = [
  '{ echo 500 > /proc/self/oom_score_adj; } 2>/dev/null',
  '__hf_command=$(cat <&3)',
  'exec 3<&-',
  `__hf_state=$${STATE_VARIABLE}`,
  `unset ${STATE_VARIABLE}`,
  'declare -A __hf_before=()',
  'for __hf_name in $(compgen -v); do __hf_ref="$__hf_name[@]"; __hf_before[$__hf_name]=${!__hf_ref@A}; done',
  '[ -r "$__hf_state" ] && . "$__hf_state" 2>/dev/null',
  [
    '__hf_save() { { local __hf_code=$?; set +eux; } 2>/dev/null',
    '[ -n "$__hf_saved" ] && return $__hf_code',
    '__hf_saved=1',
    "local IFS=$' \\t\\n' __hf_name __hf_ref __hf_now",
    '{ printf "cd -- %q\\n" "$PWD"',
    `for __hf_name in $(compgen -v); do case $__hf_name in ${NOT_KEPT}) continue;; esac`,
    '__hf_ref="$__hf_name[@]"',
    '__hf_now=${!__hf_ref@A}',
    '[ "$__hf_now" = "${__hf_before[$__hf_name]}" ] || printf "%s\\n" "$__hf_now"; unset "__hf_before[$__hf_name]"; done',
    `for __hf_name in "\${!__hf_before[@]}"; do case $__hf_name in ${NOT_KEPT}) ;; *) printf "unset %s\\n" "$__hf_name";; esac; done`,
    'declare -f; } >| "$__hf_state.$$" 2>/dev/null && mv -f "$__hf_state.$$" "$__hf_state"',
    'return $__hf_code; }',
  ].join('; '),
  'trap __hf_save EXIT',
  'eval "$__hf_command"',
  '__hf_save',
  'exit',
].join('; ');
