import type { LiveDelta } from '@holdfast/contracts';

interface OpenMessage {
  readonly eventId: string;
  readonly eventType: LiveDelta['eventType'];
  generation: number;
  sequence: number;
  text: string;
}

/** Deltas that wait for the answer about the open message; more of them than this and previewing stops. */
const MAX_EARLY = 2_000;
/** Messages whose deltas may still be under way after their end. */
const REMEMBERED_CLOSED = 8;

/**
 * The text so far of the one message that a session's model is writing. Deltas and durable events travel two
 * unordered roads (S3): a delta counts only while its span is open, in sequence and of the newest generation. On a
 * gap the preview stops until the lease's owner said what is open. The text only grows, so a stream needs to keep no
 * more than how much of it was sent.
 */
export class Preview {
  private message: OpenMessage | null = null;
  private spanOpen = false;
  /** False: we may have missed something and the lease's owner must be asked. */
  private certain = false;
  private asking: { readonly epoch: number; readonly early: LiveDelta[] } | null = null;
  /** Counts closed spans, so that a late answer is recognised. */
  private epoch = 0;
  private readonly closed: string[] = [];

  /** The message to show, or null. */
  get open(): { readonly eventId: string; readonly eventType: LiveDelta['eventType']; readonly text: string } | null {
    return this.certain && this.asking === null ? this.message : null;
  }

  /** True when the lease's owner should be asked; {@link startAsking} is to follow. */
  get needsAnswer(): boolean {
    return !this.certain && this.asking === null;
  }

  /** Forget everything: nobody listened, so deltas were missed. */
  reset(): void {
    this.message = null;
    this.certain = false;
    this.asking = null;
    this.epoch++;
  }

  /** A durable frame went by in log order. */
  passed(type: string): void {
    if (type === 'span.model_request_start') {
      this.close();
      this.spanOpen = true;
      this.certain = true;
      return;
    }
    if (
      type === 'agent.message' ||
      type === 'span.model_request_end' ||
      type.startsWith('session.status_') ||
      type === 'session.deleted'
    ) {
      this.close();
      this.spanOpen = false;
      this.certain = true;
    }
  }

  /** A delta arrived; true when the open text grew. */
  add(delta: LiveDelta): boolean {
    if (this.closed.includes(delta.eventId)) return false;
    if (this.asking !== null) {
      if (this.asking.early.length < MAX_EARLY) this.asking.early.push(delta);
      return false;
    }
    if (!this.certain) return false;
    if (!this.spanOpen) {
      this.remember(delta.eventId);
      return false;
    }
    return this.extend(delta);
  }

  startAsking(): number {
    this.asking = { epoch: this.epoch, early: [] };
    return this.epoch;
  }

  /** The lease's owner answered (`null`: nothing is open, or nobody answered). True when there is text to show. */
  answered(epoch: number, open: LiveDelta | null): boolean {
    if (this.asking === null || this.asking.epoch !== epoch) return false;
    const early = this.asking.early;
    this.asking = null;
    this.certain = true;
    if (open === null || this.closed.includes(open.eventId)) {
      // Nothing is open: what came early belongs to a message that begins now, or to one that is over.
      for (const delta of early) this.add(delta);
      return this.message !== null;
    }
    this.spanOpen = true;
    this.message = { ...open };
    for (const delta of early) {
      if (delta.eventId !== open.eventId || delta.sequence > this.message.sequence) this.extend(delta);
      if (this.message === null) break;
    }
    return this.message !== null;
  }

  private extend(delta: LiveDelta): boolean {
    const message = this.message;
    if (message === null || message.eventId !== delta.eventId) {
      if (message !== null && delta.generation < message.generation) return false;
      if (delta.sequence !== 1) return this.lose();
      this.message = { ...delta };
      return true;
    }
    if (delta.generation < message.generation || delta.sequence <= message.sequence) return false;
    if (delta.sequence !== message.sequence + 1) return this.lose();
    message.sequence = delta.sequence;
    message.generation = delta.generation;
    message.text += delta.text;
    return true;
  }

  private lose(): false {
    this.message = null;
    this.certain = false;
    return false;
  }

  private close(): void {
    if (this.message !== null) this.remember(this.message.eventId);
    this.message = null;
    this.asking = null;
    this.epoch++;
  }

  private remember(eventId: string): void {
    this.closed.push(eventId);
    if (this.closed.length > REMEMBERED_CLOSED) this.closed.shift();
  }
}
