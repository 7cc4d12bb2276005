import { FileText, Paperclip, RotateCw, X } from 'lucide-react';
import { type ReactNode, useEffect, useEffectEvent, useState } from 'react';
import { toast } from 'sonner';
import { downloadHref } from '../lib/api.ts';
import type { Attachment, Attachments } from '../lib/attachments.ts';
import { bytes } from '../lib/format.ts';
import { cn } from './ui.tsx';

/** The files of the message that is being written, and how far each is. */
export function AttachmentList({ list, attachments }: { list: readonly Attachment[]; attachments: Attachments }) {
  if (list.length === 0) return null;
  return (
    <ul aria-label="Attached files" className="mb-2 flex max-h-36 flex-wrap gap-1.5 overflow-y-auto">
      {list.map((one) => (
        <Chip key={one.key} one={one} attachments={attachments} />
      ))}
    </ul>
  );
}

const chip = 'flex max-w-full min-w-0 items-center gap-2 rounded-lg border bg-panel py-1 pr-1 pl-2 text-xs';
const chipButton = 'shrink-0 rounded-md p-1 text-soft hover:bg-raised hover:text-ink';

function Chip({ one, attachments }: { one: Attachment; attachments: Attachments }) {
  const { key, name, sizeBytes, state } = one;
  const isFailed = state.type === 'failed';
  const isOnItsWay = state.type === 'uploading' || state.type === 'waiting';
  return (
    <li className={cn(chip, 'relative overflow-hidden', isFailed && 'border-bad bg-bad-soft text-bad')}>
      <FileText className={cn('size-4 shrink-0', isFailed ? '' : 'text-soft')} aria-hidden />
      <span className="min-w-0">
        <span className="block max-w-52 truncate font-medium" title={name}>
          {name}
        </span>
        {isFailed ? (
          <span role="alert" className="block max-w-64 [overflow-wrap:anywhere]">
            {state.message}
          </span>
        ) : (
          <span className="block text-soft tabular-nums">
            {state.type === 'uploading' ? `${bytes(state.sentBytes)} of ` : state.type === 'waiting' ? 'waits · ' : ''}
            {bytes(sizeBytes)}
          </span>
        )}
      </span>
      {isFailed && !state.isFinal ? (
        <button
          type="button"
          className={chipButton}
          aria-label={`Upload ${name} again`}
          title="Try again"
          onClick={() => attachments.retry(key)}
        >
          <RotateCw className="size-3.5" aria-hidden />
        </button>
      ) : null}
      <button
        type="button"
        className={chipButton}
        aria-label={isOnItsWay ? `Cancel the upload of ${name}` : `Remove ${name}`}
        title={isOnItsWay ? 'Cancel' : 'Remove'}
        onClick={() => attachments.remove(key)}
      >
        <X className="size-3.5" aria-hidden />
      </button>
      {state.type === 'uploading' ? (
        <Progress name={name} part={sizeBytes === 0 ? 1 : state.sentBytes / sizeBytes} />
      ) : null}
    </li>
  );
}

function Progress({ name, part }: { name: string; part: number }) {
  return (
    <span
      role="progressbar"
      aria-label={`Upload of ${name}`}
      aria-valuenow={Math.round(part * 100)}
      className="absolute inset-x-0 bottom-0 h-0.5 bg-line"
    >
      <span className="block h-full bg-accent transition-[width]" style={{ width: `${part * 100}%` }} />
    </span>
  );
}

/** A file that came with a message; pressing it downloads it. */
export function AttachedFile({ file }: { file: { readonly fileId: string; readonly name: string } }) {
  return (
    <a
      href={downloadHref(file.fileId)}
      download={file.name}
      title={`Download ${file.name}`}
      className="my-1.5 flex w-fit max-w-full items-center gap-2 rounded-lg border bg-panel px-3 py-1.5 text-sm hover:bg-raised"
    >
      <Paperclip className="size-4 shrink-0 text-soft" aria-hidden />
      <span className="truncate">{file.name}</span>
    </a>
  );
}

/** While files are dragged over the page it says where they go; dropped anywhere on it, they do. */
export function DropArea({ onFiles }: { onFiles: (files: readonly File[]) => void }): ReactNode {
  const [isOver, setIsOver] = useState(false);
  const take = useEffectEvent((data: DataTransfer) => {
    const folders = [...data.items].some((item) => item.webkitGetAsEntry()?.isDirectory === true);
    if (folders) toast.error('A folder cannot be attached. Pack it into an archive first.');
    else onFiles([...data.files]);
  });
  useEffect(() => {
    // It enters a child before it leaves the parent.
    let depth = 0;
    const listen = (type: 'dragenter' | 'dragover' | 'dragleave' | 'drop', heard: (data: DataTransfer) => void) => {
      const onEvent = (event: DragEvent) => {
        if (event.dataTransfer?.types.includes('Files') !== true) return;
        // Else the browser leaves the page for the file.
        event.preventDefault();
        heard(event.dataTransfer);
      };
      window.addEventListener(type, onEvent);
      return () => window.removeEventListener(type, onEvent);
    };
    const ends = [
      listen('dragenter', () => {
        depth += 1;
        setIsOver(true);
      }),
      listen('dragover', (data) => {
        data.dropEffect = 'copy';
      }),
      listen('dragleave', () => {
        depth -= 1;
        setIsOver(depth > 0);
      }),
      listen('drop', (data) => {
        depth = 0;
        setIsOver(false);
        take(data);
      }),
    ];
    return () => {
      for (const end of ends) end();
    };
  }, []);
  return isOver ? (
    <div className="pointer-events-none fixed inset-0 z-30 flex items-center justify-center bg-page/80 p-6">
      <p className="flex items-center gap-2 rounded-xl border-2 border-dashed border-accent bg-panel px-6 py-5 font-medium shadow-md">
        <Paperclip className="size-5 text-accent" aria-hidden /> Drop files to attach them
      </p>
    </div>
  ) : null;
}
