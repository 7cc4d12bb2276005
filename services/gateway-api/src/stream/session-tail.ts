import type { LiveDelta } from '@holdfast/contracts';
import { Preview } from './preview.ts';
import { deltaFrame, startFrame } from './sse-frame.ts';

/** A durable frame ready to be written: the same bytes for every stream. */
export interface SseFrame {
  readonly version: number;
  readonly type: string;
  readonly bytes: Buffer;
}

/** A contiguous part of a session's log; versions without a frame are internal events. */
export interface SseBatch {
  readonly fromVersion: number;
  readonly toVersion: number;
  readonly frames: readonly SseFrame[];
}

/** What a stream is sent of an event that is being written: its beginning, or its text too. */
export type Previews = Readonly<Partial<Record<LiveDelta['eventType'], 'start' | 'text'>>>;

/** What a tail needs of a stream that is attached to it. */
export interface TailedStream {
  /** Every frame up to this version was written. */
  cursor: number;
  readonly previews: Previews;
  /** The event whose text is being previewed on this stream, and how much of it was written. */
  previewId: string | null;
  previewChars: number;
  /** Writes the frames above the cursor and moves it. The stream detaches itself when its reader is slow. */
  deliver(batch: SseBatch): void;
  /** Best effort: false when the reader is slow and the text was not written. */
  writePreview(bytes: Buffer): boolean;
}

/**
 * The live end of one session in this process: the streams that have read everything so far hang here and get the
 * same bytes. `version` is what all of them have; `noted` is what is known to be in the log.
 */
export class SessionTail {
  readonly sessionId: string;
  readonly preview = new Preview();
  private readonly attached = new Set<TailedStream>();
  /** Streams that are open, attached or still catching up. */
  private holders = 0;
  private deltaHolders = 0;
  private version = 0;
  private noted = 0;

  constructor(sessionId: string) {
    this.sessionId = sessionId;
  }

  get isUnused(): boolean {
    return this.holders === 0;
  }
  get isWatched(): boolean {
    return this.attached.size > 0;
  }
  /** True when the log is known to hold more than the attached streams have. */
  get isBehind(): boolean {
    return this.attached.size > 0 && this.noted > this.version;
  }
  get deliveredVersion(): number {
    return this.version;
  }
  get wantsDeltas(): boolean {
    return this.deltaHolders > 0;
  }

  hold(stream: TailedStream): void {
    this.holders++;
    if (wantsAny(stream) && ++this.deltaHolders === 1) this.preview.reset();
  }

  release(stream: TailedStream): void {
    this.detach(stream);
    this.holders--;
    if (wantsAny(stream)) this.deltaHolders--;
  }

  /** Hangs a stream here unless the log is known to go on after its cursor; then it must read on first. */
  attach(stream: TailedStream): boolean {
    if (this.noted > stream.cursor) return false;
    if (this.attached.size === 0) this.version = stream.cursor;
    else if (stream.cursor < this.version) return false;
    this.attached.add(stream);
    this.showPreview(stream, new Map());
    return true;
  }

  detach(stream: TailedStream): void {
    this.attached.delete(stream);
  }

  /** The log is known to reach this version. */
  note(version: number): void {
    if (version > this.noted) this.noted = version;
  }

  /** Delivers a batch that follows on what was delivered. False when it leaves a gap, which the log must fill. */
  deliver(batch: SseBatch): boolean {
    this.note(batch.toVersion);
    if (this.attached.size === 0) {
      for (const frame of batch.frames) this.preview.passed(frame.type);
      return true;
    }
    if (batch.toVersion <= this.version) return true;
    if (batch.fromVersion > this.version + 1) return false;
    const before = this.version;
    this.version = batch.toVersion;
    for (const frame of batch.frames) {
      if (frame.version > before) this.preview.passed(frame.type);
    }
    for (const stream of this.attached) stream.deliver(batch);
    return true;
  }

  delta(delta: LiveDelta): void {
    if (this.deltaHolders > 0 && this.preview.add(delta)) this.showPreviews();
  }

  /** Brings every attached stream up to the open event's text, unless durable frames are known to come first. */
  showPreviews(): void {
    if (this.preview.open === null || this.isBehind) return;
    // Streams that were sent as much get the same bytes. They hold for this text alone.
    const pieces = new Map<string, Buffer>();
    for (const stream of this.attached) this.showPreview(stream, pieces);
  }

  private showPreview(stream: TailedStream, pieces: Map<string, Buffer>): void {
    const open = this.preview.open;
    if (open === null || this.isBehind || stream.cursor < this.version) return;
    const wanted = stream.previews[open.eventType];
    const isNew = stream.previewId !== open.eventId;
    if (wanted === undefined || (wanted === 'start' && !isNew)) return;
    const sentChars = isNew ? -1 : stream.previewChars;
    if (sentChars >= open.text.length) return;
    const piece = `${wanted}${sentChars}`;
    let bytes = pieces.get(piece);
    if (bytes === undefined) {
      const start = isNew ? startFrame(open.eventId, open.eventType) : '';
      const text = wanted === 'start' ? '' : open.text.slice(Math.max(0, sentChars));
      bytes = Buffer.from(text === '' ? start : start + deltaFrame(open.eventId, text));
      pieces.set(piece, bytes);
    }
    if (!stream.writePreview(bytes)) return;
    stream.previewId = open.eventId;
    stream.previewChars = open.text.length;
  }
}

function wantsAny({ previews }: TailedStream): boolean {
  return Object.keys(previews).length > 0;
}
