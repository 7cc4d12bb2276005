import { type ChildProcess, spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { existsSync, mkdirSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { Writable } from 'node:stream';
import { CALL_MARK } from './processes.ts';

/** File in the scratch folder. */
const STATE = 'shell';
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
 * It takes up directory, variables and functions where the last shell left them: what differs from the environment that it
 * was started with is written down when it ends. Options, traps and jobs are not kept. It waits for its command once it is
 * all ready, starts no process of its own, and is one line, so that messages count the command's lines. What it starts is
 * killed before the runner when memory runs out.
 */
const SCRIPT = [
  '{ echo 500 > /proc/self/oom_score_adj; } 2>/dev/null',
  `__hf_before=$${BEFORE} __hf_after=$${AFTER}`,
  `unset ${BEFORE} ${AFTER}`,
  'declare -A __hf_given=()',
  `for __hf_name in ${NAMES}; do __hf_ref="$__hf_name[@]"; __hf_given[$__hf_name]=\${!__hf_ref@A}; done`,
  // The call's id, the length in bytes, the command.
  `IFS= read -r -d "" -u 3 ${CALL_MARK} && IFS= read -r -d "" -u 3 __hf_bytes && LC_ALL=C IFS= read -r -N "$__hf_bytes" -u 3 __hf_command || exit`,
  'exec 3<&-',
  'SECONDS=0',
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

/**
 * A shell for one command, which it is given when it may have been started long before: everything that does not depend on
 * the command is done by then. One that is never given any ends with the runner.
 */
export class Shell {
  /** What its processes have as their mark from before they know their call. */
  readonly mark = `shell-${randomUUID()}`;
  readonly process: ChildProcess;
  readonly env: Readonly<Record<string, string>>;
  readonly #before: string;
  readonly #after: string;

  /** @param scratch folder of the state that one shell leaves to the next */
  constructor(workspace: string, scratch: string, env: Readonly<Record<string, string>>) {
    this.env = env;
    this.#before = join(scratch, STATE);
    this.#after = join(scratch, this.mark);
    mkdirSync(scratch, { recursive: true });
    this.process = spawn('/bin/bash', ['-c', SCRIPT], {
      argv0: 'bash',
      cwd: workspace,
      env: { ...env, [BEFORE]: this.#before, [AFTER]: this.#after, [CALL_MARK]: this.mark },
      stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
      detached: true,
    });
    // Whoever waits for its end hears of it, too.
    this.process.on('error', () => undefined);
    this.process.stdio[3]?.on('error', () => undefined);
  }

  /** Whether it waits for a command still. */
  get waits(): boolean {
    const { pid, exitCode, signalCode } = this.process;
    return pid !== undefined && exitCode === null && signalCode === null;
  }

  run(callId: string, command: string): void {
    const input = this.process.stdio[3];
    if (input instanceof Writable) input.end(`${callId}\0${Buffer.byteLength(command)}\0${command}`);
  }

  /** Hands its state on after it has ended. One that was killed may not have written all of it. */
  handOn(killed: boolean): void {
    if (killed) rmSync(this.#after, { force: true });
    // One that became another program wrote nothing.
    else if (existsSync(this.#after)) renameSync(this.#after, this.#before);
  }

  /** The next one takes up nothing. */
  static forget(scratch: string): void {
    rmSync(join(scratch, STATE), { force: true, recursive: true });
  }
}
