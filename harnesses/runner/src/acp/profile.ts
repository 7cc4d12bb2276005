import type { HarnessStart } from '@holdfast/contracts';

/** What a harness finds around it. */
export interface HarnessPlaces {
  /** The harness's own folder, read-only: its program and this profile. */
  readonly folder: string;
  readonly workspace: string;
  readonly home: string;
  /** The model door, without a path: `http://127.0.0.1:<port>`. */
  readonly door: string;
}

/** How a harness is started: its program speaks ACP on its standard streams. */
export interface HarnessCommand {
  readonly command: string;
  readonly args: readonly string[];
  /** Over the sandbox's own environment. */
  readonly env: Readonly<Record<string, string>>;
  /** Written before it starts; absolute paths. */
  readonly files: readonly { readonly path: string; readonly content: string }[];
  /** What its adapter takes beside the protocol when a session begins or is loaded. */
  readonly sessionMeta?: Readonly<Record<string, unknown>>;
}

/** A tool call as the harness told it so far. */
export interface NativeCall {
  /** The tool's name where the harness tells it, else the call's first title. */
  readonly name: string;
  readonly kind: string | null;
  readonly input: Readonly<Record<string, unknown>>;
  /** Text of its content. */
  readonly text: string;
  /** Files that it changes, as far as its content says; the old text of a new one is null. */
  readonly diffs: readonly { readonly path: string; readonly oldText: string | null; readonly newText: string }[];
  /** What it printed in a terminal, and the code that it ended with: adapters tell it beside the protocol. */
  readonly terminal: { readonly printed: string; readonly exitCode: number | null };
  readonly output: unknown;
  readonly failed: boolean;
}

/**
 * What differs from one ACP harness to the next. A harness is a folder in the sandbox, named as its type, that holds
 * `profile.mjs` with an export `profile` of this shape, and the harness's program. It runs inside the runner, so it is
 * the platform's code, never the agent's.
 */
export interface HarnessProfile {
  readonly command: (start: HarnessStart, places: HarnessPlaces) => HarnessCommand;
  /** The call under the reference's names, as far as it has one of these tools; else under its own. */
  readonly toolOf: (call: NativeCall) => { readonly name: string; readonly input: Readonly<Record<string, unknown>> };
  /** False for text that is the harness's own, a warning for instance, and not the model's. Without it all is the model's. */
  readonly isModels?: (messageId: string | null) => boolean;
  /** True for a harness that does not tell when a call begins: one that needs no permission does once its input is known. */
  readonly beginsUntold?: boolean;
  /** Whether a prompt's error means that its adapter is of no more use, though it runs: it is started anew. */
  readonly isEnd?: (message: string) => boolean;
  /** What the model was told of it, once it is over. */
  readonly resultOf: (call: NativeCall) => { readonly text: string; readonly isError: boolean };
}
