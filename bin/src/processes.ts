import { type ChildProcess, spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

/** What is recorded of a running process: enough to tell it from another that got its pid later. */
interface Facts {
  readonly pid: number;
  readonly startTime: string;
  /** Of command and environment; a process with another one is replaced. */
  readonly fingerprint: string;
}

const MAX_LOG_BYTES = 20 * 1024 * 1024;
/** In every kept process' environment: which one it is and what it runs with. */
const MARK = 'HOLDFAST_PROCESS';

/** Start time of a process in the kernel's own unit; empty when it does not run. */
function startTimeOf(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' ? '' : (fields[19] ?? '');
  } catch {
    if (process.platform === 'linux') return '';
    try {
      process.kill(pid, 0);
      return 'alive';
    } catch {
      return '';
    }
  }
}

/** Its mark and its parent; null when it has none or may not be looked at. */
function markOf(pid: number): { readonly mark: string; readonly parent: number } | null {
  try {
    const found = readFileSync(`/proc/${pid}/environ`, 'utf8')
      .split('\0')
      .find((entry) => entry.startsWith(`${MARK}=`));
    const parent = /^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
    return found === undefined ? null : { mark: found.slice(MARK.length + 1), parent: Number(parent) };
  } catch {
    return null;
  }
}

/** `run/<name>.pid` and what belongs to it. */
export class RunFolder {
  readonly dir: string;
  readonly logs: string;

  constructor(stateDir: string) {
    this.dir = join(stateDir, 'run');
    this.logs = join(stateDir, 'log');
    mkdirSync(this.dir, { recursive: true, mode: 0o755 });
    mkdirSync(this.logs, { recursive: true, mode: 0o755 });
  }

  record(name: string, pid: number, fingerprint: string): void {
    const facts: Facts = { pid, startTime: startTimeOf(pid), fingerprint };
    this.#write(`${name}.json`, JSON.stringify(facts));
    this.#write(`${name}.pid`, `${pid}\n`);
  }

  /** Whole or not at all, also when the process is killed meanwhile. */
  #write(file: string, text: string): void {
    const path = join(this.dir, file);
    writeFileSync(`${path}.new`, text);
    renameSync(`${path}.new`, path);
  }

  /** The value that marks a process as the one of that name. */
  mark(name: string, fingerprint: string): string {
    return `${fingerprint} ${join(this.dir, name)}`;
  }

  /**
   * Records processes of this folder that run and are not recorded: a supervisor can be killed between a start and its
   * record. Only where /proc is.
   */
  recordStrays(): void {
    if (process.platform !== 'linux') return;
    for (const pid of readdirSync('/proc').map(Number)) {
      const own = Number.isInteger(pid) ? markOf(pid) : null;
      // What a kept process has started inherits its mark.
      if (own === null || markOf(own.parent)?.mark === own.mark) continue;
      const space = own.mark.indexOf(' ');
      const [fingerprint, path] = [own.mark.slice(0, space), own.mark.slice(space + 1)];
      const name = basename(path);
      if (dirname(path) === this.dir && this.find(name) === null) this.record(name, pid, fingerprint);
    }
  }

  forget(name: string): void {
    for (const suffix of ['pid', 'json']) rmSync(join(this.dir, `${name}.${suffix}`), { force: true });
  }

  /** The process of that name, if it is the one that was recorded and still runs. */
  find(name: string): Facts | null {
    try {
      const facts = JSON.parse(readFileSync(join(this.dir, `${name}.json`), 'utf8')) as Facts;
      return startTimeOf(facts.pid) === facts.startTime && facts.startTime !== '' ? facts : null;
    } catch {
      return null;
    }
  }

  names(): string[] {
    return readdirSync(this.dir)
      .filter((file) => file.endsWith('.pid'))
      .map((file) => file.slice(0, -'.pid'.length));
  }

  logFile(name: string): string {
    return join(this.logs, `${name}.log`);
  }

  lastLines(name: string, count: number): string[] {
    try {
      return readFileSync(this.logFile(name), 'utf8').trimEnd().split('\n').slice(-count);
    } catch {
      return [];
    }
  }
}

/** Signals a process and waits until it is gone; after `graceMs` it is killed. */
export async function endProcess(pid: number, signal: NodeJS.Signals, graceMs: number): Promise<void> {
  const startTime = startTimeOf(pid);
  if (startTime === '') return;
  const send = (which: NodeJS.Signals): void => {
    try {
      process.kill(pid, which);
    } catch {
      // Gone already.
    }
  };
  send(signal);
  for (const deadline = Date.now() + graceMs; Date.now() < deadline; await sleep(25))
    if (startTimeOf(pid) !== startTime) return;
  send('SIGKILL');
  while (startTimeOf(pid) === startTime) await sleep(25);
}

/** How one process of the platform is run. */
export interface ProcessPlan {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly cwd: string;
  readonly uid?: number;
  readonly gid?: number;
  readonly stopSignal: NodeJS.Signals;
  readonly stopGraceMs: number;
  /** Of what it runs with. */
  readonly fingerprint: string;
}

/** Starts a process in a group of its own, with its output in its log, and records it. It outlives who starts it. */
export function startRecorded(plan: ProcessPlan, run: RunFolder): ChildProcess {
  const file = run.logFile(plan.name);
  if (existsSync(file) && statSync(file).size > MAX_LOG_BYTES) renameSync(file, `${file}.1`);
  const log = openSync(file, 'a', 0o600);
  const { uid, gid } = plan;
  const child = spawn(plan.command, [...plan.args], {
    cwd: plan.cwd,
    env: { ...plan.env, [MARK]: run.mark(plan.name, plan.fingerprint) },
    stdio: ['ignore', log, log],
    // A group of its own: a Ctrl-C in the terminal stops the supervisor, which stops the rest in order.
    detached: true,
    ...(uid === undefined ? {} : { uid }),
    ...(gid === undefined ? {} : { gid }),
  });
  closeSync(log);
  if (child.pid !== undefined) run.record(plan.name, child.pid, plan.fingerprint);
  return child;
}

const FIRST_BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 5_000;
const STEADY_MS = 10_000;

/** Keeps one process running: starts it, or adopts one that an earlier supervisor left, and restarts what dies. */
export class Keeper {
  readonly plan: ProcessPlan;
  restarts = 0;
  readonly #run: RunFolder;
  readonly #log: (line: string) => void;
  #stopping = false;
  #pid: number | null = null;
  #loop: Promise<void> | null = null;
  #interrupt: () => void = () => undefined;

  constructor(plan: ProcessPlan, run: RunFolder, log: (line: string) => void) {
    this.plan = plan;
    this.#run = run;
    this.#log = log;
  }

  get pid(): number | null {
    return this.#pid;
  }

  start(): void {
    this.#loop = this.#keep();
  }

  async stop(): Promise<void> {
    this.#stopping = true;
    this.#interrupt();
    if (this.#pid !== null) await endProcess(this.#pid, this.plan.stopSignal, this.plan.stopGraceMs);
    await this.#loop;
    this.#run.forget(this.plan.name);
  }

  async #keep(): Promise<void> {
    let backoffMs = FIRST_BACKOFF_MS;
    while (!this.#stopping) {
      const startedAt = Date.now();
      const left = this.#run.find(this.plan.name);
      if (left !== null && left.fingerprint !== this.plan.fingerprint)
        await endProcess(left.pid, this.plan.stopSignal, this.plan.stopGraceMs);
      if (this.#stopping) return;
      const ended = left !== null && left.fingerprint === this.plan.fingerprint ? this.#adopt(left.pid) : this.#spawn();
      const how = await ended;
      this.#pid = null;
      if (this.#stopping) return;
      this.#log(`${this.plan.name} ended (${how}); starting it again`);
      this.restarts += 1;
      backoffMs = Date.now() - startedAt > STEADY_MS ? FIRST_BACKOFF_MS : Math.min(MAX_BACKOFF_MS, backoffMs * 2);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, backoffMs);
        this.#interrupt = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
  }

  async #adopt(pid: number): Promise<string> {
    this.#pid = pid;
    this.#log(`${this.plan.name} still runs (pid ${pid})`);
    const startTime = startTimeOf(pid);
    while (startTimeOf(pid) === startTime) await sleep(200);
    return 'gone';
  }

  #spawn(): Promise<string> {
    const child = startRecorded(this.plan, this.#run);
    this.#pid = child.pid ?? null;
    return new Promise((resolve) => {
      child.once('error', (error) => resolve(error.message));
      child.once('exit', (code, signal) => resolve(signal ?? `exit ${code}`));
    });
  }
}
