import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

const PARENT = 'holdfast';

/** Memory and process limits of sandboxes through cgroups, v2 or v1, where they can be written. */
export class CgroupLimits {
  readonly available: boolean;
  readonly #limits: { readonly memoryBytes: number; readonly maxProcesses: number };
  /** Folder and file of each limit. */
  readonly #controllers: readonly { readonly dir: string; readonly file: string; readonly value: string }[];

  constructor(limits: { readonly memoryBytes: number; readonly maxProcesses: number }) {
    this.#limits = limits;
    this.#controllers = this.#find();
    this.available = this.#controllers.some(({ file }) => file.startsWith('memory'));
  }

  /** Puts a process, and what it starts from now on, under the limits. */
  add(name: string, pid: number): void {
    for (const { dir, file, value } of this.#controllers) {
      try {
        const own = join(dir, name);
        mkdirSync(own, { recursive: true });
        writeFileSync(join(own, file), value);
        writeFileSync(join(own, 'cgroup.procs'), String(pid));
      } catch {
        // Said once at the start: these limits are there where the machine allows them.
      }
    }
  }

  remove(name: string): void {
    for (const { dir } of this.#controllers) {
      try {
        rmdirSync(join(dir, name));
      } catch {
        // Not there, or a process is still leaving it; an empty one costs nothing.
      }
    }
  }

  #find(): { dir: string; file: string; value: string }[] {
    const { memoryBytes, maxProcesses } = this.#limits;
    const v2 = '/sys/fs/cgroup';
    try {
      const offered = readFileSync(join(v2, 'cgroup.controllers'), 'utf8').split(/\s+/);
      if (offered.includes('memory')) {
        const dir = join(v2, PARENT);
        mkdirSync(dir, { recursive: true });
        writeFileSync(join(v2, 'cgroup.subtree_control'), '+memory +pids');
        writeFileSync(join(dir, 'cgroup.subtree_control'), '+memory +pids');
        return [
          { dir, file: 'memory.max', value: String(memoryBytes) },
          { dir, file: 'pids.max', value: String(maxProcesses) },
        ];
      }
    } catch {
      // No writable v2 hierarchy.
    }
    return [
      { dir: join(v2, 'memory', PARENT), file: 'memory.limit_in_bytes', value: String(memoryBytes) },
      { dir: join(v2, 'pids', PARENT), file: 'pids.max', value: String(maxProcesses) },
    ].filter(({ dir }) => {
      try {
        mkdirSync(dir, { recursive: true });
        return existsSync(join(dir, 'cgroup.procs'));
      } catch {
        return false;
      }
    });
  }
}
