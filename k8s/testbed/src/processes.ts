import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { homedir } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { endProcess, type ProcessPlan, RunFolder, startRecorded } from '../../../bin/src/processes.ts';
import { Hopeless, until } from './commands.ts';
import type { Bed } from './settings.ts';

/** A program of the bed. */
export interface Component {
  readonly name: string;
  readonly command: string;
  readonly args: readonly string[];
  /** Contents of the files that it reads at its start; when they change it is started again. */
  readonly inputs?: readonly string[];
  /** True when its command line says only where it lies: another checkout's is as good. */
  readonly movable?: boolean;
}

const STOP_GRACE_MS = 10_000;

/** The bed's processes: they go on when the command that started them has ended, and only they are ever ended. */
export class Processes {
  readonly #run: RunFolder;

  constructor(stateDir: string) {
    this.#run = new RunFolder(stateDir);
  }

  /** Starts it unless it runs, with just this. @returns whether it was started */
  async ensure(component: Component): Promise<boolean> {
    const { name, command, args, inputs = [], movable = false } = component;
    const identity = movable ? inputs : [command, ...args, ...inputs];
    const fingerprint = createHash('sha256').update(JSON.stringify(identity)).digest('hex').slice(0, 16);
    const found = this.#run.find(name);
    if (found?.fingerprint === fingerprint) return false;
    if (found !== null) await this.#end(name, 'SIGTERM');
    const plan: ProcessPlan = {
      ...{ name, command, args, fingerprint },
      env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', HOME: homedir() },
      cwd: '/',
      stopSignal: 'SIGTERM',
      stopGraceMs: STOP_GRACE_MS,
    };
    startRecorded(plan, this.#run).unref();
    return true;
  }

  /** Its process id while it runs. */
  pid(name: string): number | null {
    return this.#run.find(name)?.pid ?? null;
  }

  /** Ends it at once. */
  async kill(name: string): Promise<void> {
    await this.#end(name, 'SIGKILL');
  }

  async #end(name: string, signal: NodeJS.Signals): Promise<void> {
    const found = this.#run.find(name);
    if (found !== null) await endProcess(found.pid, signal, STOP_GRACE_MS);
    this.#run.forget(name);
  }

  /** Waits until it is well. @throws Error with the end of its log when it has died or takes too long */
  async untilWell(name: string, isWell: () => Promise<boolean>, timeoutMs = 90_000): Promise<void> {
    const log = this.#run.logFile(name);
    try {
      await until(
        `${name} is ready`,
        () => {
          if (this.pid(name) === null) throw new Hopeless(`${name} has ended`);
          return isWell();
        },
        { timeoutMs },
      );
    } catch (error) {
      const last = this.#run.lastLines(name, 8).join('\n');
      throw new Error(`${error instanceof Error ? error.message : String(error)}; the end of ${log}:\n${last}`);
    }
  }
}

/** One command at a time works on a bed: others wait. The kernel frees it when its holder dies. */
export async function exclusively<T>(bed: Bed, say: (line: string) => void, work: () => Promise<T>): Promise<T> {
  const lock = createServer();
  // An abstract address: nothing of it is on a disk.
  const take = async (): Promise<boolean> => {
    lock.listen(`\0holdfast-testbed ${bed.stateDir}`);
    try {
      await once(lock, 'listening');
      return true;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
      return false;
    }
  };
  if (!(await take())) {
    say('waiting for another command that works on this test bed');
    while (!(await take())) await sleep(200);
  }
  try {
    return await work();
  } finally {
    lock.close();
  }
}
