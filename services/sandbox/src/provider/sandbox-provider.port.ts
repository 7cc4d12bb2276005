/** What a sandbox is made from. */
export interface SandboxSpec {
  readonly id: string;
  readonly workspaceId: string;
  readonly sessionId: string;
  /** Sessions of one (workspace, environment, context key) share the workspace folder and nothing else (X4). */
  readonly contextId: string | null;
  /** A number of its own among all sandboxes, for identities on the host. */
  readonly serial: number;
}

export type Observation = 'running' | 'stopped' | 'absent';

/**
 * Runs sandboxes. Two adapters pass the same contract suite; the local one is the first.
 *
 * `ensure` starts the runner unless it runs; the runner then dials the hub and proves itself with the token. It throws
 * AppError `sandbox.isolation-unavailable`, `sandbox.disk-full`, `sandbox.start-failed`. `suspend` ends the processes and
 * keeps the files; `destroy` removes the files too. All are safe to repeat.
 */
export interface SandboxProvider {
  readonly name: string;
  /** How processes are isolated, for the event and the status page. */
  readonly isolation: string;
  /** Returns true when a new incarnation was started, with this token. */
  ensure(spec: SandboxSpec, token: string): Promise<boolean>;
  suspend(spec: SandboxSpec): Promise<void>;
  destroy(spec: SandboxSpec): Promise<void>;
  observe(spec: SandboxSpec): Promise<Observation>;
  /** Folder with the sockets that the runner reaches; {@link prepareLink} makes it. */
  linkDir(spec: SandboxSpec): string;
  prepareLink(spec: SandboxSpec): Promise<void>;
  /** Bytes that it holds on disk: workspace, home, and what is kept of its runner. */
  usage(spec: SandboxSpec): Promise<number>;
  /** What is free on the disk that sandboxes write to, in bytes, and why no tool may run: it is nearly full; null when not. */
  room(): Promise<{ freeBytes: number; lack: string | null }>;
  /** Ids of the sandboxes that have files. */
  kept(): Promise<string[]>;
}
