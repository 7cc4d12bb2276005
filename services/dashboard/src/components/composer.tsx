'use client';
import { type SessionView, waitsFor } from '@holdfast/contracts';
import { Paperclip, SendHorizontal, Square } from 'lucide-react';
import { type KeyboardEvent, useEffect, useRef, useState, useSyncExternalStore } from 'react';
import { toast } from 'sonner';
import { messageOf } from '../lib/api.ts';
import { Attachments, mountAttachments } from '../lib/attachments.ts';
import { useCapabilities } from '../lib/platform-status.ts';
import { AttachmentList, DropArea } from './attachment-list.tsx';
import type { SendEvents } from './chat-items.tsx';
import { Button, cn } from './ui.tsx';

/** Where the keyboard goes when what had it is gone. */
export const COMPOSER_ID = 'composer';
const MAX_HEIGHT_PX = 240;

/** The message box. A draft and its files survive a reload, and are kept until their message is stored. */
export function Composer({ view, send }: { view: SessionView; send: SendEvents }) {
  const draft = `draft:${view.id}`;
  const box = useRef<HTMLTextAreaElement>(null);
  // Drawn in the browser only, once the session is known.
  const [text, setText] = useState(() => sessionStorage.getItem(draft) ?? '');
  const [busy, setBusy] = useState(false);
  /** What was being done when it was interrupted. */
  const [interrupted, setInterrupted] = useState<string | null>(null);
  const [steer, setSteer] = useState(false);
  const isRunning = view.status === 'running' || view.status === 'rescheduling';
  const waits = waitsFor(view);
  // Nobody here can answer for a worker that does not come; its call can be given up.
  const canInterrupt = isRunning || waits === 'worker';
  const doing = `${view.runningSince} ${view.worker?.calls.join()}`;
  const isInterrupting = canInterrupt && interrupted === doing;
  const picker = useRef<HTMLInputElement>(null);
  const [attachments] = useState(() => new Attachments(`attached:${view.id}`));
  const files = useSyncExternalStore(attachments.subscribe, attachments.snapshot, attachments.snapshot);
  const fileMaxBytes = useCapabilities().data?.file_max_bytes ?? null;
  const isUploading = files.some(({ state }) => state.type === 'uploading' || state.type === 'waiting');
  const isFailed = files.some(({ state }) => state.type === 'failed');
  const isEmpty = text.trim() === '' && files.length === 0;
  // Workers of self-hosted environments are given no files.
  const takesFiles = view.worker === undefined;

  useEffect(() => {
    box.current?.focus();
  }, []);
  useEffect(() => () => attachments.stop(), [attachments]);
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
  const attach = (added: readonly File[]) => {
    if (takesFiles) attachments.add(added, fileMaxBytes);
    else toast.error('A self-hosted environment is given no files.');
    box.current?.focus();
  };
  const submit = async () => {
    if (busy || isEmpty || isUploading || isFailed) return;
    setBusy(true);
    try {
      const content = await mountAttachments(view.id, files).catch((error: unknown) => {
        toast.error(messageOf(error));
        throw error;
      });
      await send([
        {
          type: 'user.message',
          content: [...content, ...(text.trim() === '' ? [] : [{ type: 'text', text }])],
          ...(steer && isRunning ? { x_steer: true } : {}),
        },
      ]);
      change('');
      attachments.sent(files);
    } catch {
      // The reason was shown; the draft is still here.
    } finally {
      setBusy(false);
      box.current?.focus();
    }
  };
  const interrupt = async () => {
    if (!canInterrupt || isInterrupting) return;
    setInterrupted(doing);
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
      <DropArea onFiles={attach} />
      <div className="mx-auto max-w-3xl">
        <AttachmentList list={files} attachments={attachments} />
        <div className="flex items-end gap-1.5 rounded-xl border border-edge bg-page p-1.5 focus-within:border-accent focus-within:ring-1 focus-within:ring-accent">
          {takesFiles ? (
            <>
              <input
                ref={picker}
                type="file"
                multiple
                hidden
                onChange={({ currentTarget: input }) => {
                  attach([...(input.files ?? [])]);
                  // The same file may be chosen again.
                  input.value = '';
                }}
              />
              <Button look="ghost" size="icon" aria-label="Attach files" onClick={() => picker.current?.click()}>
                <Paperclip className="size-4" aria-hidden />
              </Button>
            </>
          ) : null}
          <textarea
            ref={box}
            id={COMPOSER_ID}
            rows={1}
            aria-label="Message"
            placeholder={
              waits === 'client'
                ? 'Answer the call above first'
                : canInterrupt
                  ? 'Write on; it waits its turn'
                  : 'Write a message'
            }
            className="max-h-60 min-h-9 flex-1 resize-none bg-transparent px-2 py-1.5 text-sm outline-none placeholder:text-soft/90 placeholder:whitespace-nowrap"
            value={text}
            onChange={(event) => change(event.target.value)}
            onKeyDown={onKeyDown}
            onPaste={(event) => {
              if (event.clipboardData.files.length === 0) return;
              event.preventDefault();
              attach([...event.clipboardData.files]);
            }}
          />
          {canInterrupt ? (
            <Button busy={isInterrupting} aria-keyshortcuts="Escape" onClick={() => void interrupt()}>
              {isInterrupting ? null : <Square className="size-3 fill-current" aria-hidden />}{' '}
              <span className="max-sm:sr-only">Interrupt</span>
            </Button>
          ) : null}
          <Button
            look="primary"
            size="icon"
            type="submit"
            aria-label="Send"
            busy={busy}
            disabled={isEmpty || isUploading || isFailed}
          >
            {busy ? null : <SendHorizontal className="size-4" aria-hidden />}
          </Button>
        </div>
        <div className="mt-1.5 flex items-center sm:min-h-5 justify-between gap-2 px-1 text-xs text-soft">
          <span role="status" className="empty:hidden">
            {isFailed
              ? 'Remove what could not be uploaded, or try it again'
              : isUploading
                ? 'Can be sent once the files are uploaded'
                : ''}
          </span>
          <span className={cn('hidden', isFailed || isUploading || 'sm:inline')}>
            <kbd>Enter</kbd> sends, <kbd>Shift</kbd> <kbd>Enter</kbd> makes a new line
            {canInterrupt ? (
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
