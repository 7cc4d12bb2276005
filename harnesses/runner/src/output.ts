import { closeSync, mkdirSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';

/** As `TOOL_OUTPUT_CHARS` of the contracts; a runner is a program of its own and shares only types with them. */
export const SHOWN_CHARS = 30_000;
const MAX_WHOLE_BYTES = 64 * 1024 * 1024;

/**
 * A tool's output. What is shown is bounded: its beginning and its end, with a mark between them. From the moment it is
 * too long to be shown whole, all of it (up to 64 MiB) goes to a file that the agent can read on.
 */
export class Output {
  readonly #folder: string;
  readonly #callId: string;
  readonly #decoder = new TextDecoder();
  #head = '';
  #tail = '';
  #chars = 0;
  #file: number | null = null;
  #written = 0;
  #path: string | null = null;

  constructor(folder: string, callId: string) {
    this.#folder = folder;
    this.#callId = callId;
  }

  add(bytes: Uint8Array): void {
    this.addText(this.#decoder.decode(bytes, { stream: true }));
  }

  addText(text: string): void {
    if (text === '') return;
    this.#chars += text.length;
    if (this.#file === null && this.#chars <= SHOWN_CHARS) {
      this.#head += text;
      return;
    }
    if (this.#file === null) this.#spill();
    this.#write(text);
    this.#tail = (this.#tail + text).slice(-SHOWN_CHARS / 2);
  }

  #spill(): void {
    mkdirSync(this.#folder, { recursive: true });
    this.#path = join(this.#folder, `${this.#callId}.txt`);
    this.#file = openSync(this.#path, 'w', 0o600);
    this.#write(this.#head);
    this.#tail = this.#head.slice(-SHOWN_CHARS / 2);
    this.#head = this.#head.slice(0, SHOWN_CHARS / 2 - 400);
  }

  #write(text: string): void {
    if (this.#file === null || this.#written >= MAX_WHOLE_BYTES) return;
    this.#written += writeSync(this.#file, text);
  }

  /** What is shown, and the file with the whole when that is more. */
  end(): { text: string; wholePath: string | null } {
    this.addText(this.#decoder.decode());
    if (this.#file === null) return { text: this.#head, wholePath: null };
    closeSync(this.#file);
    const cut = this.#chars - this.#head.length - this.#tail.length;
    return {
      text: `${this.#head}\n[cut: ${cut} characters; the whole output is in ${this.#path}]\n${this.#tail}`,
      wholePath: this.#path,
    };
  }
}
