'use client';
import { type SessionView, waitsFor } from '@holdfast/contracts';
import { SendHorizontal, Square } from 'lucide-react';
import { type KeyboardEvent, useEffect, useRef, useState } from 'react';
import type { SendEvents } from './chat-items.tsx';
import { Button } from './ui.tsx';

/** Where the keyboard goes when what had it is gone. */
export const COMPOSER_ID = 'composer';
const MAX_HEIGHT_PX = 240;

/** The message box. A draft survives a reload, and is kept until its message is stored. */
export function Composer({ view, send }: { view: SessionView; send: SendEvents }) {
  const draft = `draft:${view.id}`;
  const box = useRef<HTMLTextAreaElement>(null);
  // Drawn in the browser only, once the session is known.
  const [text, setText] = useState(() => sessionStorage.getItem(draft) ?? '');
  const [busy, setBusy] = useState(false);
  /** When the turn began that is being interrupted. */
  const [interrupted, setInterrupted] = useState<string | null>(null);
  const [steer, setSteer] = useState(false);
  const isRunning = view.status === 'running' || view.status === 'rescheduling';
  const isInterrupting = isRunning && interrupted !== null && interrupted === view.runningSince;
  const isWaiting = waitsFor(view) !== null;

  useEffect(() => {
    box.current?.focus();
  }, []);
  // biome-ignore lint/correctness/useExhaustiveDependencies: the height follows the text
  useEffect(() => {
    const area = box.current;
    if (area === null) return;
    area.style.height = 'auto';
    area.style.height = `${Math.min(area.scrollHeight, MAX_HEIGHT_PX)}px`;
  }, [text]);

  const change = (value: string) => {
    setText(value);
    try {
      if (value === '') sessionStorage.removeItem(draft);
      else sessionStorage.setItem(draft, value);
    } catch {
      // The store is full or refused: the draft lives as long as the page.
    }
  };
  const submit = async () => {
    if (busy || text.trim() === '') return;
    setBusy(true);
    try {
      await send([
        {
          type: 'user.message',
          content: [{ type: 'text', text }],
          ...(steer && isRunning ? { x_steer: true } : {}),
        },
      ]);
      change('');
    } catch {
      // The reason was shown; the draft is still here.
    } finally {
      setBusy(false);
      box.current?.focus();
    }
  };
  const interrupt = async () => {
    if (!isRunning || isInterrupting) return;
    setInterrupted(view.runningSince);
    try {
      await send([{ type: 'user.interrupt' }]);
    } catch {
      setInterrupted(null);
    }
    box.current?.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.nativeEvent.isComposing) return;
    if (event.key === 'Escape') void interrupt();
    if (event.key !== 'Enter' || event.shiftKey) return;
    event.preventDefault();
    void submit();
  };

  if (view.archivedAt !== null) {
    return (
      <p className="border-t bg-panel p-4 text-center text-sm text-soft">
        This session is archived and takes no more messages.
      </p>
    );
  }
  return (
    <form
      className="border-t bg-panel p-3"
      onSubmit={(event) => {
        event.preventDefault();
        void submit();
      }}
    >
      <div className="mx-auto max-w-3xl">
        <div className="flex items-end gap-1.5 rounded-xl border border-edge bg-page p-1.5 focus-within:border-accent focus-within:ring-1 focus-within:ring-accent">
          <textarea
            ref={box}
            id={COMPOSER_ID}
            rows={1}
            aria-label="Message"
            placeholder={
              isWaiting ? 'Answer the call above first' : isRunning ? 'Write on; it waits its turn' : 'Write a message'
            }
            className="max-h-60 min-h-9 flex-1 resize-none bg-transparent px-2 py-1.5 text-sm outline-none placeholder:text-soft/90 placeholder:whitespace-nowrap"
            value={text}
            onChange={(event) => change(event.target.value)}
            onKeyDown={onKeyDown}
          />
          {isRunning ? (
            <Button busy={isInterrupting} aria-keyshortcuts="Escape" onClick={() => void interrupt()}>
              {isInterrupting ? null : <Square className="size-3 fill-current" aria-hidden />}{' '}
              <span className="max-sm:sr-only">Interrupt</span>
            </Button>
          ) : null}
          <Button look="primary" size="icon" type="submit" aria-label="Send" busy={busy} disabled={text.trim() === ''}>
            {busy ? null : <SendHorizontal className="size-4" aria-hidden />}
          </Button>
        </div>
        <div className="mt-1.5 flex items-center sm:min-h-5 justify-between gap-2 px-1 text-xs text-soft">
          <span className="hidden sm:inline">
            <kbd>Enter</kbd> sends, <kbd>Shift</kbd> <kbd>Enter</kbd> makes a new line
            {isRunning ? (
              <>
                , <kbd>Esc</kbd> interrupts
              </>
            ) : null}
          </span>
          {isRunning ? (
            <label
              className="flex items-center gap-1.5"
              title="The agent reads the message at its next step, without finishing the turn first"
            >
              <input
                type="checkbox"
                className="accent-accent"
                checked={steer}
                onChange={(event) => setSteer(event.target.checked)}
              />{' '}
              steer the running turn
            </label>
          ) : null}
        </div>
      </div>
    </form>
  );
}
