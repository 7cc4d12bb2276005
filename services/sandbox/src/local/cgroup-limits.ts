import { accessSync, constants, existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';

const ROOT = '/sys/fs/cgroup';
const PARENT = 'holdfast';
/** How long the kernel may take to let go of a group whose processes have just ended. */
const REMOVE_WAIT_MS = 1_000;

/** One hierarchy: v2 has one for everything, v1 one per controller. */
interface Hierarchy {
  readonly dir: string;
  /** What each sandbox's folder in it is given, where the kernel has the file. */
  readonly settings: readonly (readonly [file: string, value: string])[];
}

/**
 * Memory and process limits of sandboxes through cgroups, v2 or v1, where they can be written. CPU has no limit, but all
 * sandboxes together weigh as much as one process of the platform when there is not enough of it.
 */
export class CgroupLimits {
  /** What cannot be limited on this machine. */
  readonly missing: readonly string[];
  readonly #hierarchies: readonly Hierarchy[];

  constructor(limits: { readonly memoryBytes: number; readonly maxProcesses: number }) {
    const controllers = {
      memory: [
        ['memory.max', String(limits.memoryBytes)],
        ['memory.swap.max', '0'],
        ['memory.limit_in_bytes', String(limits.memoryBytes)],
        ['memory.memsw.limit_in_bytes', String(limits.memoryBytes)],
      ],
      pids: [['pids.max', String(limits.maxProcesses)]],
      cpu: [],
    } as const;
    const names = ['memory', 'pids', 'cpu'] as const;
    const unified = names.filter((name) => delegated(name));
    const own = names.filter((name) => !unified.includes(name) && made(name));
    this.missing = names.filter((name) => !unified.includes(name) && !own.includes(name));
    this.#hierarchies = [
      ...(unified.length === 0
        ? []
        : [{ dir: join(ROOT, PARENT), settings: unified.flatMap((name) => [...controllers[name]]) }]),
      ...own.map((name) => ({ dir: join(ROOT, name, PARENT), settings: controllers[name] })),
    ];
  }

  /**
   * Makes a sandbox's groups. The process that writes 0 to each of the returned files, and what it starts from then on,
   * is under the limits. @throws when a limit cannot be set
   */
  make(name: string): string[] {
    return this.#hierarchies.map(({ dir, settings }) => {
      const own = join(dir, name);
      try {
        // One with older limits would refuse some newer ones.
        rmdirSync(own);
      } catch {
        // Not there, which is the rule.
      }
      mkdirSync(own, { recursive: true });
      for (const [file, value] of settings) if (existsSync(join(own, file))) writeFileSync(join(own, file), value);
      return join(own, 'cgroup.procs');
    });
  }

  /** Removes a sandbox's groups once they are empty; one that a process will not leave stays, and costs nothing. */
  async remove(name: string): Promise<void> {
    for (const { dir } of this.#hierarchies) {
      for (const deadline = Date.now() + REMOVE_WAIT_MS; existsSync(join(dir, name)); await sleep(10)) {
        try {
          rmdirSync(join(dir, name));
        } catch {
          if (Date.now() > deadline) break;
        }
      }
    }
  }
}

/** Whether the unified hierarchy hands this controller to our folder. */
function delegated(controller: string): boolean {
  try {
    if (!readFileSync(join(ROOT, 'cgroup.controllers'), 'utf8').split(/\s+/).includes(controller)) return false;
    mkdirSync(join(ROOT, PARENT), { recursive: true });
    for (const dir of [ROOT, join(ROOT, PARENT)]) writeFileSync(join(dir, 'cgroup.subtree_control'), `+${controller}`);
    return true;
  } catch {
    return false;
  }
}

/** Whether our folder is there, or could be made, and is ours to write in the controller's own hierarchy (version 1). */
function made(controller: string): boolean {
  if (!existsSync(join(ROOT, controller, 'cgroup.procs')) || existsSync(join(ROOT, 'cgroup.controllers'))) return false;
  try {
    mkdirSync(join(ROOT, controller, PARENT), { recursive: true });
    accessSync(join(ROOT, controller, PARENT), constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
