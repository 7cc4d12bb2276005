'use client';
import { SendHorizontal } from 'lucide-react';
import { type KeyboardEvent, useEffect, useRef, useState } from 'react';
import type { SendEvents } from './chat-items.tsx';
import { Button } from './ui.tsx';

/** The message box. A draft survives a reload, and is kept until its message is stored. */
export function Composer(props: { sessionId: string; running: boolean; archived: boolean; send: SendEvents }) {
  const place = `draft:${props.sessionId}`;
  const box = useRef<HTMLTextAreaElement>(null);
  // Drawn in the browser only, once the session is known.
  const [text, setText] = useState(() => sessionStorage.getItem(place) ?? '');
  const [busy, setBusy] = useState(false);
  const [steer, setSteer] = useState(false);

  useEffect(() => {
    box.current?.focus();
  }, []);
  // biome-ignore lint/correctness/useExhaustiveDependencies: the height follows the text
  useEffect(() => {
    const area = box.current;
    if (area === null) return;
    area.style.height = 'auto';
    area.style.height = `${Math.min(area.scrollHeight, 240)}px`;
  }, [text]);

  const change = (value: string) => {
    setText(value);
    try {
      if (value === '') sessionStorage.removeItem(place);
      else sessionStorage.setItem(place, value);
    } catch {
      // The store is full or refused: the draft lives as long as the page.
    }
  };
  const submit = async () => {
    if (busy || text.trim() === '') return;
    setBusy(true);
    try {
      await props.send([
        {
          type: 'user.message',
          content: [{ type: 'text', text }],
          ...(steer && props.running ? { x_steer: true } : {}),
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
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.key !== 'Enter' || event.shiftKey || event.nativeEvent.isComposing) return;
    event.preventDefault();
    void submit();
  };

  if (props.archived) {
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
        <div className="flex items-end gap-2 rounded-xl border bg-page p-1.5 focus-within:border-accent">
          <textarea
            ref={box}
            rows={1}
            aria-label="Message"
            placeholder={props.running ? 'Write on; it waits for the running turn' : 'Write a message'}
            className="max-h-60 min-h-9 flex-1 resize-none bg-transparent px-2 py-1.5 text-sm outline-none"
            value={text}
            onChange={(event) => change(event.target.value)}
            onKeyDown={onKeyDown}
          />
          <Button look="primary" size="icon" type="submit" aria-label="Send" busy={busy} disabled={text.trim() === ''}>
            {busy ? null : <SendHorizontal className="size-4" aria-hidden />}
          </Button>
        </div>
        <div className="mt-1.5 flex items-center justify-between gap-2 px-1 text-xs text-soft">
          <span>Enter sends, Shift and Enter makes a new line</span>
          {props.running ? (
            <label className="flex items-center gap-1.5">
              <input type="checkbox" checked={steer} onChange={(event) => setSteer(event.target.checked)} /> steer the
              running turn
            </label>
          ) : null}
        </div>
      </div>
    </form>
  );
}
