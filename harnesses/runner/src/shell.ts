/** Where the shell takes its state from, and where it leaves it when it ends by itself. */
export interface ShellState {
  readonly before: string;
  readonly after: string;
}

/** One environment variable holds 128 KiB at most; a code unit is three bytes at most. */
const PIECE_UNITS = 40_000;
const PIECE = 'HOLDFAST_COMMAND_';
const BEFORE = 'HOLDFAST_SHELL_BEFORE';
const AFTER = 'HOLDFAST_SHELL_AFTER';

/** Variables that a shell sets by itself, and the runner's own: never carried into the next call. */
const NOT_KEPT =
  'BASH*|COMP_*|DIRSTACK|EPOCH*|EUID|FUNCNAME|GROUPS|HISTCMD|HOLDFAST_*|IFS|LINENO|OLDPWD|OPTIND|PIPESTATUS|PPID|PWD|RANDOM|SECONDS|SHELLOPTS|SHLVL|SRANDOM|UID|_|__hf_*';
/** The names of all variables, without starting a process for it. */
const NAMES = '_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'
  .split('')
  .map((first) => `"\${!${first}@}"`)
  .join(' ');

/**
 * A shell for one command, which is handed over in its environment ({@link shellEnv}). It takes up directory, variables and
 * functions where the last one left them: what differs from the environment that it was started with is written down when
 * it ends. Options, traps and jobs are not kept. It starts no process of its own, and is one line, so that messages count
 * the command's lines. What it starts is killed before the runner when memory runs out.
 */
export const SHELL = [
  '{ echo 500 > /proc/self/oom_score_adj; } 2>/dev/null',
  `while __hf_name=${PIECE}$((__hf_i++)); [ -n "\${!__hf_name+x}" ]; do __hf_command+=\${!__hf_name}; unset "$__hf_name"; done`,
  `__hf_before=$${BEFORE} __hf_after=$${AFTER}`,
  `unset ${BEFORE} ${AFTER}`,
  'declare -A __hf_given=()',
  `for __hf_name in ${NAMES}; do __hf_ref="$__hf_name[@]"; __hf_given[$__hf_name]=\${!__hf_ref@A}; done`,
  '[ -r "$__hf_before" ] && . "$__hf_before" 2>/dev/null',
  [
    '__hf_save() { { local __hf_code=$?; set +eux; } 2>/dev/null',
    '[ -n "$__hf_saved" ] && return $__hf_code',
    '__hf_saved=1',
    'local __hf_name __hf_ref __hf_now',
    '{ printf "cd -- %q\\n" "$PWD"',
    `for __hf_name in ${NAMES}; do case $__hf_name in ${NOT_KEPT}) continue;; esac`,
    '__hf_ref="$__hf_name[@]"',
    '__hf_now=${!__hf_ref@A}',
    '[ "$__hf_now" = "${__hf_given[$__hf_name]}" ] || printf "%s\\n" "$__hf_now"; unset "__hf_given[$__hf_name]"; done',
    `for __hf_name in "\${!__hf_given[@]}"; do case $__hf_name in ${NOT_KEPT}) ;; *) printf "unset %s\\n" "$__hf_name";; esac; done`,
    'declare -f; } 2>/dev/null >| "$__hf_after"',
    'return $__hf_code; }',
  ].join('; '),
  'trap __hf_save EXIT',
  'eval "$__hf_command"',
  '__hf_save',
  'exit',
].join('; ');

/** What the shell's environment needs on top of the command's own. A command of more than about 2 MB is not started. */
export function shellEnv(command: string, state: ShellState): Record<string, string> {
  const env: Record<string, string> = { [BEFORE]: state.before, [AFTER]: state.after };
  for (let at = 0, piece = 0; at < command.length; piece++) {
    let end = at + PIECE_UNITS;
    // Both halves of a character stay together.
    if (/[\uD800-\uDBFF]/.test(command.charAt(end - 1))) end += 1;
    env[`${PIECE}${piece}`] = command.slice(at, end);
    at = end;
  }
  return env;
}
